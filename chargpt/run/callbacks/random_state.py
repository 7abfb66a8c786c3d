"""Random numbers: each rank's own, and after an interruption those that would have come."""

import logging
import struct
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from chargpt.errors import UserError

log = logging.getLogger(__name__)


class RandomState(Callback):
    """Gives each rank random numbers of its own, puts PyTorch's random states into each full checkpoint, one for each
    rank, and takes them from there again.

    Lightning's checkpoints leave them out: dropout would differ after an interruption. And it seeds all ranks alike:
    their dropout masks would coincide.
    """

    _restored: dict[str, torch.Tensor] | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.global_rank > 0:
            torch.manual_seed(torch.initial_seed() + trainer.global_rank)

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        device = trainer.strategy.root_device
        state = {"cpu": torch.get_rng_state()}
        if device.type != "cpu":
            state["device"] = torch.get_device_module(device).get_rng_state(device)
        states = [state]
        if trainer.world_size > 1:
            states = [state] * trainer.world_size
            torch.distributed.all_gather_object(states, state)
        checkpoint["random_states"] = states

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        states = checkpoint.get("random_states")
        if states is None:  # written before 2026-12: one state, in another callback's care
            old = checkpoint["callbacks"].get("LastCheckpoint", {})
            states = [{"cpu": old["cpu"]} | ({"device": old["cuda"][0]} if old["cuda"] else {})] if old else []
        if len(states) == trainer.world_size:
            self._restored = states[trainer.global_rank]
        elif states:
            log.warning(
                f"This run had {len(states)} device{'s' * (len(states) > 1)} and goes on with {trainer.world_size}:"
                " from here on, batches and dropout are not those that would have come"
            )

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if self._restored is not None:  # only now: making the loaders has drawn numbers since
            _check_state(self._restored["cpu"])
            torch.set_rng_state(self._restored["cpu"])
            device = trainer.strategy.root_device
            if "device" in self._restored and device.type != "cpu":
                torch.get_device_module(device).set_rng_state(self._restored["device"], device)
            self._restored = None


NUMBERS = 624  # that a Mersenne twister has ready at a time


def _check_state(state: torch.Tensor) -> None:
    """Refuse a state by which PyTorch would take other memory for its random numbers: it checks both counts of its
    generator, of those that are left and of the next one, but not that they agree.

    Raises:
        UserError: it is such a state.
    """
    if state.dtype == torch.uint8 and state.numel() >= 24:  # else PyTorch itself refuses it
        _, left, _, following = struct.unpack("<QiiQ", state[:24].numpy().tobytes())
        if left - 1 + following > NUMBERS:
            raise UserError("its random state is none of PyTorch's")

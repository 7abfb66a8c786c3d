"""Random numbers: each rank has its own stream, which continues when a run resumes."""

import logging
import struct
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from chargpt.errors import UserError

log = logging.getLogger(__name__)


class RandomState(Callback):
    """Seeds each rank differently, and keeps PyTorch's random state of each rank in full checkpoints.

    Lightning does neither: dropout would differ after an interruption, and all ranks would draw the same masks.
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
        checkpoint["random_states"] = states = [state] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(states, state)

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        states = checkpoint.get("random_states", [])  # empty if this callback was off
        if len(states) == trainer.world_size:
            self._restored = states[trainer.global_rank]
        elif states:
            log.warning(
                f"This run had {len(states)} device{'s' * (len(states) > 1)} and resumes with {trainer.world_size}:"
                " from here on, batches and dropout differ from those of an uninterrupted run"
            )

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if self._restored is not None:  # not earlier: the data loaders have drawn numbers
            _, left, _, following = struct.unpack("<QiiQ", self._restored["cpu"][:24].numpy().tobytes())
            if left - 1 + following > 624:  # PyTorch would read past the 624 numbers of its Mersenne twister
                raise UserError("the random state in the checkpoint is not one of PyTorch's")
            torch.set_rng_state(self._restored["cpu"])
            device = trainer.strategy.root_device
            if "device" in self._restored and device.type != "cpu":
                torch.get_device_module(device).set_rng_state(self._restored["device"], device)
            self._restored = None

"""What Lightning's checkpoints lack: each rank's random numbers, the settings that must not change, and checks."""

import inspect
import logging
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from torch import Tensor

from chargpt.callbacks.saving import check_loadable
from chargpt.errors import UserError
from chargpt.module import CharLM
from chargpt.optim import lr_factor
from chargpt.run.config import Settings
from chargpt.run.resume import Resumption, fixed_values

log = logging.getLogger(__name__)


class TrainingState(Callback):
    """Completes the state that a run saves and resumes from.

    - Each rank has its own stream of random numbers, which continues. (In Lightning, dropout would differ after an
      interruption, and all ranks would draw the same masks.)
    - Settings that must not change are saved. The optimizer's options and its learning rate, which follows the new
      `max_steps`, and the arguments of callbacks come from the new settings.

    Attributes:
        at_first_step: called after the first batch: changed settings are stored only if they work.
        stepped: whether that has happened; an earlier error comes from the settings or the checkpoint.
    """

    def __init__(self, settings: Settings, resumption: Resumption | None):
        self.settings = settings
        self.step = resumption.step if resumption else None
        self.at_first_step: Callable[[], None] = lambda: None
        self.stepped = False
        self._random_state: dict[str, Tensor] | None = None  # to restore

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        # Convert now: Lightning would load 64-bit weights into fp32 parameters, and convert those.
        trainer.precision_plugin.convert_module(module)

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["fixed"] = fixed_values(self.settings)
        device, state = trainer.strategy.root_device, {"cpu": torch.get_rng_state()}
        if device.type != "cpu":
            state["device"] = torch.get_device_module(device).get_rng_state(device)
        checkpoint["random_states"] = states = [state] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(states, state)

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["lr_schedulers"] = []  # they follow from the step and the settings
        random_states = checkpoint["random_states"]
        if len(random_states) == trainer.world_size:
            self._random_state = random_states[trainer.global_rank]
        else:
            now = f"{len(random_states)} device(s) before, {trainer.world_size} now"
            log.warning(f"{now}: batches and dropout will differ from those of an uninterrupted run")
        states = checkpoint["callbacks"]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # the Trainer has it, undeclared
            state = states.get(callback.state_key)
            if isinstance(callback, Timer):  # each start has the whole time limit
                states.pop(callback.state_key, None)
            elif isinstance(state, dict):
                if path := next(paths_outside(state, os.path.realpath(self.settings.run_dir)), None):
                    log.warning(f"The state of {callback.state_key} is not restored: it names {path}, outside the run")
                    del states[callback.state_key]
                    continue
                for kind in filter(lambda each: issubclass(each, Callback), type(callback).__mro__):
                    for name in inspect.signature(kind).parameters:  # such as a new `patience`
                        if name in state and hasattr(callback, name):
                            state[name] = getattr(callback, name)

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        check_loadable({"callbacks": {each.state_key: each.state_dict() for each in trainer.callbacks}})  # type: ignore[attr-defined]
        if trainer.global_rank > 0:
            torch.manual_seed(torch.initial_seed() + trainer.global_rank)
        if self.step is not None:
            self._restore_optimizer(trainer, module, self.step)

    def _restore_optimizer(self, trainer: Trainer, module: CharLM, step: int) -> None:
        config, (optimizer,) = module.optimizer_config, trainer.optimizers
        factor, before = lr_factor(config, step, trainer.max_steps), optimizer.param_groups[0]["lr"]
        for group, fresh in zip(optimizer.param_groups, config.build(module.net).param_groups, strict=True):
            now = {"params": group["params"], "initial_lr": fresh["lr"], "lr": fresh["lr"] * factor}
            group.update(fresh | now)
            check_state(group, optimizer.state)
        rates = [group["lr"] for group in optimizer.param_groups]
        for each in trainer.lr_scheduler_configs:
            now = {"last_epoch": step, "_step_count": step + 1, "_last_lr": rates}
            each.scheduler.load_state_dict(each.scheduler.state_dict() | now)
        if not math.isclose(before, rates[0]):
            change = f"from {before:.3g} to {rates[0]:.3g}"
            log.info(f"The learning rate jumps {change}: its schedule is now that of {trainer.max_steps} steps")

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if self._random_state is not None:  # not earlier: the data loaders have drawn numbers
            torch.set_rng_state(self._random_state["cpu"])
            device = trainer.strategy.root_device
            if "device" in self._random_state and device.type != "cpu":
                torch.get_device_module(device).set_rng_state(self._random_state["device"], device)
            self._random_state = None

    def on_train_batch_end(self, *_: Any) -> None:
        if not self.stepped:
            self.stepped = True
            self.at_first_step()


def paths_outside(state: Any, folder: str) -> Iterator[str]:
    """Paths outside of the run's folder in a callback's state: `ModelCheckpoint` removes files that its state names,
    and the run may have been copied, or come from a stranger."""
    if isinstance(state, str):
        elsewhere = "://" in state or "::" in state  # addresses, for libraries that open more than files
        if elsewhere or (os.path.lexists(state) and not Path(os.path.realpath(state)).is_relative_to(folder)):
            yield state
    elif isinstance(state, dict):
        yield from paths_outside([*state, *state.values()], folder)
    elif isinstance(state, list | tuple | set):
        for each in state:
            yield from paths_outside(each, folder)


def check_state(group: dict[str, Any], states: Any) -> None:
    """Refuse an optimizer's state without its parameters' shapes: fused optimizers read and write as many numbers as a
    parameter has, without a check."""
    for parameter in group["params"] if group.get("fused") else ():
        state = states.get(parameter, {})
        like = (parameter.dtype, parameter.shape)
        fits = [(v.dtype, v.shape) == ((torch.float32, ()) if name == "step" else like) for name, v in state.items()]
        if not (fits and all(fits)) or not all(value.is_contiguous() for value in state.values()):
            raise UserError("the optimizer's state in the checkpoint does not fit the model")

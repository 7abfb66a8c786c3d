"""The state that a run goes on from, once Lightning has restored it."""

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import AdamW, Optimizer

from chargpt.errors import UserError
from chargpt.module import CharLM
from chargpt.optim import lr_factor
from chargpt.run.resume import Resumption

log = logging.getLogger(__name__)


class Restoring(Callback):
    """Checks that a restored state is the one to go on from. What follows from the settings alone is ours again, not
    the file's: the options of the optimizer, and its learning rate.

    Attributes:
        at_first_step: is called once the first step since is made.
        done: it is: an error before that is the state's, or the settings'.
    """

    def __init__(self, resumption: Resumption | None):
        self.step = resumption.step if resumption else None
        self.at_first_step: Callable[[], None] = lambda: None
        self.done = False

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        # Lightning restores weights before it makes them those of the precision: in 64 bits half of each would be lost.
        trainer.precision_plugin.convert_module(module)

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if "current_model_state" in checkpoint:  # where `state_dict` is their average
            module.load_state_dict(checkpoint["current_model_state"])
        loops = {"fit": trainer.fit_loop, "validate": trainer.validate_loop, "test": trainer.test_loop}
        loops |= {"predict": trainer.predict_loop}
        _check_counts(checkpoint["loops"], {f"{name}_loop": loop.state_dict() for name, loop in loops.items()})

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self.step is None:
            return
        assert isinstance(module, CharLM)
        if trainer.global_step != self.step:
            raise UserError(f"its parts disagree on how many steps were made: {self.step} or {trainer.global_step}")
        config, (optimizer,) = module.optimizer_config, trainer.optimizers
        fresh = config.build(module.net).param_groups
        factor, before = lr_factor(config, self.step, trainer.max_steps), optimizer.param_groups[0]["lr"]
        for group, ours in zip(optimizer.param_groups, fresh, strict=True):
            now = {"params": group["params"], "initial_lr": ours["lr"], "lr": ours["lr"] * factor}
            group.update(ours | now)
            _check_state(group, optimizer)
        for each in trainer.lr_scheduler_configs:  # their state was not restored: it follows from the step
            rates = [group["lr"] for group in optimizer.param_groups]
            now = {"last_epoch": self.step, "_step_count": self.step + 1, "_last_lr": rates}
            each.scheduler.load_state_dict(each.scheduler.state_dict() | now)
        after = optimizer.param_groups[0]["lr"]
        if not math.isclose(before, after):
            log.info(
                f"The learning rate goes from {before:.3g} to {after:.3g} at once: its {config.schedule} schedule is"
                f" now that of {trainer.max_steps} steps"
            )

    def on_train_batch_end(self, *_: Any) -> None:
        if not self.done:
            self.done = True
            self.at_first_step()


def _check_counts(loops: Any, ours: Any) -> None:
    """Refuse counts of other names than those of Lightning's loops, which make attributes of them."""
    deep = isinstance(ours, dict)
    if isinstance(loops, dict) != deep or (deep and not loops.keys() <= ours.keys()):
        raise UserError("its counts of batches and the like are none of Lightning's")
    for name in loops if deep else ():
        _check_counts(loops[name], ours[name])


def _check_state(group: dict[str, Any], optimizer: Optimizer) -> None:
    """Refuse an optimizer's state that is not whole, or not of its parameters' shapes.

    A fused optimizer reads and writes as many numbers as a parameter has, without looking how many are there.
    """
    states = optimizer.state
    names = {frozenset(states.get(parameter, {})) for parameter in group["params"]}
    ours = ("mean",) if "momentum" in group else ("step", "exp_avg", "exp_avg_sq")
    if len(names) > 1 or (isinstance(optimizer, AdamW) and not names <= {frozenset(ours)}):
        raise UserError("its optimizer has no state for some of the parameters")
    if not group.get("fused"):
        return
    for parameter in group["params"]:
        for name, value in states.get(parameter, {}).items():
            if not isinstance(value, Tensor) or not value.is_floating_point() or not value.is_contiguous():
                raise UserError(f"its optimizer's {name} is no tensor of numbers")
            if name == "step" and value.dtype != torch.float32:
                raise UserError(f"its optimizer counts steps in {value.dtype}")
            if value.shape != (() if name == "step" else parameter.shape):
                raise UserError(f"its optimizer's {name} is of another shape than the parameter")

"""The end of an optimizer step, which Lightning has no hook for."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class AtStepEnd(Callback):
    """Calls `on_step_end` once per optimizer step: after its last batch, and after the validation that belongs to it.

    At this point Lightning's loops, the optimizer and the random generators agree: a checkpoint saved here resumes bit
    for bit.
    """

    _last_step = 0  # whose end was seen: several batches make a step where gradients accumulate

    def on_step_end(self, trainer: Trainer, module: LightningModule) -> None:
        """For subclasses."""

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._last_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        batches, interval = trainer.fit_loop.total_batch_idx + 1, trainer.val_check_batch or 1
        validates = trainer.enable_validation and (trainer.should_stop or batches % interval == 0)
        if not validates:
            self._end_step(trainer, module)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._end_step(trainer, module)

    def _end_step(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.global_step > self._last_step:
            self._last_step = trainer.global_step
            self.on_step_end(trainer, module)

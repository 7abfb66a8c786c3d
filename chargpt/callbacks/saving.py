"""What a run saves: the weights of the lowest validation loss, and from time to time the whole state of training."""

import io
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, Timer

from chargpt.callbacks.averaging import validated_weights
from chargpt.errors import UserError
from chargpt.files import replace

LARGE = ("state_dict", "current_model_state", "optimizer_states", "callbacks")  # parts of a checkpoint


def stops(trainer: Trainer) -> bool:
    """Whether Lightning ends the training after this batch, because a callback has set `should_stop`."""
    return trainer.should_stop and trainer.global_step >= (trainer.min_steps or 0)


class AtStepEnd(Callback):
    """Calls `on_step_end` once per optimizer step, after its last batch and the validation that follows.

    Only then do Lightning's loops, the optimizer and the random generators agree, so that a run resumes bit for bit
    from a checkpoint. Lightning has no such hook.

    Attributes:
        stopping: whether this callback ends the run after this step, which has to be saved before.
    """

    stopping = False
    _last_step = 0  # the last completed step: with accumulation, a step has several batches

    def on_step_end(self, trainer: Trainer, module: LightningModule) -> None:
        """For subclasses."""

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._last_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        batches, interval = trainer.fit_loop.total_batch_idx + 1, trainer.val_check_batch or 1
        if not (trainer.enable_validation and (stops(trainer) or batches % interval == 0)):
            self._end_step(trainer, module)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._end_step(trainer, module)

    def _end_step(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.global_step > self._last_step:
            self._last_step = trainer.global_step
            self.on_step_end(trainer, module)


class BestCheckpoint(Checkpoint):
    """Saves the weights of the lowest validation loss as `best.ckpt`.

    The module keeps the lowest loss. Lightning's ModelCheckpoint forgets it if the folder was moved, and would then
    replace a better model.

    Args:
        dirpath: the folder of the file.
    """

    def __init__(self, dirpath: str):
        self.path = Path(dirpath, "best.ckpt")

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        metrics = trainer.callback_metrics
        if not trainer.sanity_checking and metrics["val/loss"] <= metrics["val/best_loss"]:
            with validated_weights(trainer, module):
                save(trainer, self.path, weights_only=True)


class LastCheckpoint(AtStepEnd, Checkpoint):
    """Saves the whole state of training as `last.ckpt`: every `every_n_steps` optimizer steps and after the last one.
    The one before stays as `previous.ckpt`.

    Lightning's ModelCheckpoint writes `last.ckpt` only when it saves a best one, and in the middle of a step.

    Args:
        dirpath: the folder of the files.
    """

    def __init__(self, dirpath: str, every_n_steps: int):
        if every_n_steps < 1:
            raise UserError(f"callbacks.last_checkpoint.every_n_steps must be at least 1; got {every_n_steps}")
        self.path = Path(dirpath, "last.ckpt")
        self.every_n_steps = every_n_steps
        self._saved_step = 0
        self._stop_is_due = False

    # Lightning calls checkpoint callbacks last: the others' states are final, and they have asked to stop if they do.

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        super().on_train_start(trainer, module)
        self._saved_step = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self._saved_step:  # the metrics of the saved step were logged after its end
            for logger in trainer.loggers:
                logger.save()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self._complete_step(trainer)
        super().on_train_batch_end(trainer, module)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._complete_step(trainer)
        super().on_validation_end(trainer, module)

    def _complete_step(self, trainer: Trainer) -> None:
        """Delay a stop between two batches of a step to the end of the step: half a step cannot be saved."""
        if trainer.global_step == self._last_step:
            self._stop_is_due |= trainer.should_stop
            trainer.should_stop = False
        elif self._stop_is_due:
            trainer.should_stop, self._stop_is_due = True, False

    def on_step_end(self, trainer: Trainer, module: LightningModule) -> None:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]  # the Trainer has it, undeclared
        step = trainer.global_step
        is_last = step >= trainer.max_steps or stops(trainer)
        is_last |= any(isinstance(each, AtStepEnd) and each.stopping for each in callbacks)
        if is_last or step % self.every_n_steps == 0:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.save(trainer)  # if a limit of epochs ended the run

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        timers = [each for each in trainer.callbacks if isinstance(each, Timer)]  # type: ignore[attr-defined]
        in_time = all((each.time_remaining() or 1) > 0 for each in timers)
        if stops(trainer) and in_time and trainer.global_step < trainer.max_steps:
            checkpoint["stopped_early"] = True  # a resumed run would stop again after its next validation
        check_loadable(checkpoint)

    def save(self, trainer: Trainer) -> None:
        """Save between two optimizer steps, unless this step is saved already."""
        if self._saved_step != trainer.global_step:
            save(trainer, self.path, keep=self.path.with_name("previous.ckpt"))
            self._saved_step = trainer.global_step


def save(trainer: Trainer, path: Path, *, weights_only: bool = False, keep: Path | None = None) -> None:
    """Write a checkpoint beside its place and rename it: if the disk is full, the earlier ones are unchanged.

    This is `files.replacing` for a file that Lightning writes by its name, with all ranks.

    Args:
        keep: the new name of the checkpoint that is replaced.
    """
    half = path.with_name(f".{path.name}.tmp")
    try:
        trainer.save_checkpoint(half, weights_only=weights_only)
        if trainer.is_global_zero:
            with half.open("rb+") as file:
                os.fsync(file.fileno())
            if keep is not None and path.exists():
                replace(path, keep)
            replace(half, path)
    except BaseException:
        if trainer.is_global_zero:
            half.unlink(missing_ok=True)
        raise


def check_loadable(checkpoint: dict[str, Any]) -> None:
    """Refuse a state that could be saved but not loaded as data: the run could not resume."""
    parts = {f"checkpoint[{key!r}]": value for key, value in checkpoint.items() if key not in LARGE}
    parts |= {f"the state of the callback {key}": state for key, state in checkpoint["callbacks"].items()}
    for name, value in parts.items():
        try:
            torch.save(value, content := io.BytesIO())
            content.seek(0)
            torch.load(content, weights_only=True)
        except Exception as error:  # the kind depends on the value
            raise UserError(
                f"{name} cannot be loaded as data, so the run could not resume: keep numbers, text, lists, dictionaries"
                " and tensors in it, such as float(x) instead of a NumPy number"
            ) from error

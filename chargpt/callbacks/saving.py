"""What a run saves: the weights of the lowest validation loss, and from time to time the whole state of training."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, Timer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from chargpt.errors import UserError
from chargpt.files import replacing

LARGE = ("state_dict", "optimizer_states", "callbacks")  # parts of a checkpoint


def stops(trainer: Trainer) -> bool:
    """Whether Lightning ends the training after this batch, because a callback has set `should_stop`."""
    return trainer.should_stop and trainer.global_step >= (trainer.min_steps or 0)


def stopped_early(trainer: Trainer) -> bool:
    """Whether a callback ends the run before its last step, and not because a time limit is reached."""
    timers = [each for each in trainer.callbacks if isinstance(each, Timer)]  # type: ignore[attr-defined]
    in_time = all(left is None or left > 0 for left in (each.time_remaining() for each in timers))
    return stops(trainer) and in_time and trainer.global_step < trainer.max_steps


class AtStepEnd(Callback):
    """Calls `on_step_end` once per optimizer step, after its last batch and the validation that follows.

    Only then do Lightning's loops, the optimizer and the random generators agree, so that a run resumes bit for bit
    from a checkpoint. Lightning has no such hook.

    Attributes:
        stopping: whether this callback is about to end the run, so that this step must be saved.
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
        self._end_step(trainer, module)

    def _end_step(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.global_step > self._last_step:
            self._last_step = trainer.global_step
            self.on_step_end(trainer, module)


class BestCheckpoint(Checkpoint):
    """Saves the weights of the lowest validation loss as `best.ckpt` in `dirpath`.

    The module keeps the lowest loss. Lightning's ModelCheckpoint forgets it if the folder was moved, and would then
    replace a better model.
    """

    def __init__(self, dirpath: str):
        self.path = Path(dirpath, "best.ckpt")

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        metrics = trainer.callback_metrics
        if metrics["val/loss"] <= metrics["val/best_loss"]:
            trainer.save_checkpoint(self.path, weights_only=True)


class LastCheckpoint(AtStepEnd, Checkpoint):
    """Saves the whole state of training as `last.ckpt` in `dirpath`: every `every_n_steps` optimizer steps, and at the
    end. The one before stays as `previous.ckpt`.

    Lightning's ModelCheckpoint writes `last.ckpt` only when it saves a best one, and in the middle of a step.
    """

    def __init__(self, dirpath: str, every_n_steps: int):
        if every_n_steps < 1:
            raise UserError(f"callbacks.last_checkpoint.every_n_steps must be at least 1; got {every_n_steps}")
        self.path = Path(dirpath, "last.ckpt")
        self.every_n_steps = every_n_steps
        self._stop_is_due = False

    # Lightning calls checkpoint callbacks last, when the others' state is final and any stop has been requested.

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
        stopping = any(isinstance(each, AtStepEnd) and each.stopping for each in trainer.callbacks)  # type: ignore[attr-defined]
        is_last = stopping or trainer.global_step >= trainer.max_steps or stops(trainer)
        if is_last or trainer.global_step % self.every_n_steps == 0:
            trainer.save_checkpoint(self.path, storage_options={"keep": self.path.with_name("previous.ckpt")})

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if stopped_early(trainer):  # a resumed run would stop again after its next validation
            checkpoint["stopped_early"] = True
        check_loadable(checkpoint)


class AtomicFiles(TorchCheckpointIO):
    """Writes every checkpoint of the Trainer atomically: if the disk is full, earlier ones are unchanged.
    `storage_options={"keep": path}` keeps the previous file there. (Lightning first writes a copy to the system's
    temporary folder.)"""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path)
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, content := io.BytesIO())  # to a file, torch would hide the reason for a failure
        with replacing(Path(path), **(storage_options or {})) as half:
            half.write_bytes(content.getbuffer())


def check_loadable(checkpoint: dict[str, Any]) -> None:
    """Refuse a state that could be saved but not loaded as data: the run could not resume."""
    for name, value in (checkpoint | checkpoint["callbacks"]).items():
        if name not in LARGE:
            try:
                torch.save(value, content := io.BytesIO())
                content.seek(0)
                torch.load(content, weights_only=True)
            except Exception as error:  # the kind depends on the value
                raise UserError(f"the run could not resume: {name} is not plain numbers, text and tensors") from error

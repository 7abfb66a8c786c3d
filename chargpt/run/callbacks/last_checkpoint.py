"""The whole state of training, from time to time."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from chargpt.errors import UserError
from chargpt.run.callbacks.step_end import AtStepEnd
from chargpt.run.checkpoints import save
from chargpt.run.loggers import flush


class LastCheckpoint(AtStepEnd, Checkpoint):
    """Saves the whole state of training as `last.ckpt`: every `every_n_steps` optimizer steps and after the last one.
    The one before stays as `previous.ckpt`.

    It has its own clock: the checkpoint of the best score no longer changes once a run overfits.

    Args:
        dirpath: the folder of the files.
        every_n_steps: optimizer steps from one save to the next.

    Attributes:
        is_asked: whether to save at the end of this step, too, which then is the last one.

    Raises:
        UserError: `every_n_steps` is below 1.
    """

    def __init__(self, dirpath: str, every_n_steps: int):
        if every_n_steps < 1:
            raise UserError(f"callbacks.last_checkpoint.every_n_steps must be at least 1; got {every_n_steps}")
        self.path = Path(dirpath, "last.ckpt")
        self.every_n_steps = every_n_steps
        self.is_asked = False
        self._saved_step = 0
        self._logged = True
        self._stops = False

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        # A run that is told to stop between two batches of one step makes the step first: half of one cannot be saved.
        # Lightning has checkpoint callbacks come last: whoever stops it has done so.
        self._stops = self._stops or trainer.should_stop
        trainer.should_stop = self._stops and trainer.global_step > self._last_step
        super().on_train_batch_end(trainer, module)

    def on_step_end(self, trainer: Trainer, module: LightningModule) -> None:
        step = trainer.global_step
        if self.is_asked or step % self.every_n_steps == 0 or step >= trainer.max_steps > 0 or trainer.should_stop:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.global_step > 0:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Save now, between two optimizer steps, unless this step is saved already."""
        if self._saved_step != trainer.global_step:
            save(trainer, self.path, keep=self.path.with_name("previous.ckpt"))
            self._saved_step = trainer.global_step
            self._logged = False

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if not self._logged:  # a step's metrics are logged after its end: only now are those of the saved one
            flush(trainer.loggers)
            self._logged = True

"""Checkpoints of a run: when they are written, and how a run stops so that it can go on.

A checkpoint is written under another name and renamed, so that a crash leaves the one before. Training is saved at the
end of an optimizer step, after the validation that belongs to it: there Lightning's loops, the optimizer and the
generators of random numbers say all there is to say, and what follows is bitwise what would have followed.
"""

import logging
import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint

from chargpt.errors import NonFiniteError, UserError
from chargpt.module import CharLM

log = logging.getLogger(__name__)


class BestCheckpoint(Checkpoint):
    """Saves the weights of the lowest validation loss as `best.ckpt`.

    The lowest loss so far is the module's own, which a resumed run has back, also where its folder was moved:
    Lightning's ModelCheckpoint would then forget it and write over a better model.
    """

    def __init__(self, dirpath: str):
        self.path = Path(dirpath, "best.ckpt")

    def on_validation_end(self, trainer: Trainer, module: CharLM) -> None:
        metrics = trainer.callback_metrics
        if not trainer.sanity_checking and metrics["val/loss"] <= metrics["val/best_loss"]:
            save(trainer, self.path, weights_only=True)


class LastCheckpoint(Checkpoint):
    """Saves the whole state of training as `last.ckpt`: every `every_n_steps` optimizer steps, after the last one, and
    when a signal asks the run to stop. The one before stays as `previous.ckpt`.

    It has its own clock: the checkpoint of the best score no longer changes once a run overfits.

    SIGINT (Ctrl-C), SIGTERM and, from SLURM, SIGUSR1 let the step end, save, and end the process with 128 + SIGINT or
    SIGTERM, which ends a sweep, too. A second signal ends it at once.
    """

    def __init__(self, dirpath: str, every_n_steps: int):
        if every_n_steps < 1:
            raise UserError(f"callbacks.last_checkpoint.every_n_steps must be at least 1; got {every_n_steps}")
        self.path = Path(dirpath, "last.ckpt")
        self.every_n_steps = every_n_steps
        self._step = 0  # the last whose end was seen: several batches make a step where gradients accumulate
        self._signal: int | None = None
        self._stopping = False
        self._handlers: dict[int, Any] = {}
        self._random_states: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"cpu": torch.get_rng_state(), "cuda": cuda}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._random_states = state_dict

    def on_train_start(self, trainer: Trainer, module: CharLM) -> None:
        self._step = trainer.global_step
        signals = [signal.SIGINT, signal.SIGTERM]
        if "SLURM_JOB_ID" in os.environ:
            signals.append(signal.SIGUSR1)
        self._handlers = {each: signal.signal(each, self._on_signal) for each in signals}

    def on_train_batch_start(self, trainer: Trainer, module: CharLM, batch: Any, batch_idx: int) -> None:
        if self._random_states is not None:  # only now: making the loaders has drawn numbers since
            torch.set_rng_state(self._random_states["cpu"])
            if torch.cuda.is_available() and len(self._random_states["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all(self._random_states["cuda"])
            self._random_states = None
        self._stop_if_saved(trainer)

    def on_train_batch_end(self, trainer: Trainer, module: CharLM, *_: Any) -> None:
        batches = trainer.global_step * trainer.accumulate_grad_batches
        validates = trainer.enable_validation and (trainer.should_stop or batches % trainer.val_check_batch == 0)
        if trainer.global_step > self._step and not validates:
            self._on_step_end(trainer, module)

    def on_validation_end(self, trainer: Trainer, module: CharLM) -> None:
        if trainer.global_step > self._step and not trainer.sanity_checking:
            self._on_step_end(trainer, module)

    def on_train_end(self, trainer: Trainer, module: CharLM) -> None:
        self._restore_handlers()
        self._stop_if_saved(trainer)

    def on_exception(self, trainer: Trainer, module: CharLM, exception: BaseException) -> None:
        self._restore_handlers()

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            raise SystemExit(_status(signum))
        self._signal = signum
        log.warning(f"{signal.Signals(signum).name}: stopping after this step (again: stop at once)")

    def _restore_handlers(self) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers = {}

    def _on_step_end(self, trainer: Trainer, module: CharLM) -> None:
        self._step = step = trainer.global_step
        stopping = self._signal is not None
        if trainer.world_size > 1:  # one process may have had the signal a step before another
            stopping = trainer.strategy.reduce_boolean_decision(stopping, all=False)
        if step % self.every_n_steps == 0 or step >= trainer.max_steps or stopping:
            if not all(parameter.isfinite().all() for parameter in module.net.parameters()):
                raise NonFiniteError(f"the weights are not finite after step {step}")
            save(trainer, self.path, keep=self.path.with_name("previous.ckpt"))
            self._stopping = stopping

    def _stop_if_saved(self, trainer: Trainer) -> None:
        """End the process; not at once after saving, because Lightning logs a step's metrics after that."""
        if self._stopping:
            if trainer.is_global_zero:
                run = self.path.parent.parent
                log.warning(f"Stopped after step {trainer.global_step}. To go on: python train.py resume={run}")
            raise SystemExit(_status(self._signal or signal.SIGTERM))


def save(trainer: Trainer, path: Path, *, weights_only: bool = False, keep: Path | None = None) -> None:
    """Write a checkpoint beside its place and rename it into it.

    Args:
        keep: the name under which the checkpoint that is replaced stays.

    Raises:
        OSError: the disk is full, say; the checkpoints that were there are as they were.
    """
    half = path.with_name(f".{path.name}.tmp")
    try:
        trainer.save_checkpoint(half, weights_only=weights_only)  # all processes take part
        if trainer.is_global_zero:
            with half.open("rb+") as file:
                os.fsync(file.fileno())  # the bytes are on disk before the name is
            if keep is not None and path.exists():
                os.replace(path, keep)
            os.replace(half, path)
    except BaseException:
        half.unlink(missing_ok=True)
        raise


def _status(signum: int) -> int:
    return 128 + (signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM)

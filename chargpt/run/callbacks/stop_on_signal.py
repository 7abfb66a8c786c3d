"""Ctrl-C and its like: the step ends, its state is saved, and then the process."""

import contextlib
import os
import signal
from types import FrameType
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from chargpt.errors import Stopped
from chargpt.module import is_logged
from chargpt.run.callbacks.last_checkpoint import LastCheckpoint
from chargpt.run.callbacks.step_end import AtStepEnd
from chargpt.run.devices import launched_here

HANGUP = 1  # SIGHUP, which Windows lacks


class StopOnSignal(AtStepEnd):
    """SIGINT (Ctrl-C), SIGTERM, SIGHUP (a closed terminal; not under nohup) and, from SLURM or submitit, SIGUSR1 and
    SIGUSR2 let the step end, have `LastCheckpoint` save it, and end the process with 128 + the signal (SIGTERM for the
    last two), which ends a sweep, too. A second signal ends it at once. After a signal of submitit's, its own handler
    has the job start again.
    """

    _signal: int | None = None
    _speaks = True
    _stopping = False
    _saved = False

    def __init__(self) -> None:
        self._handlers: dict[int, Any] = {}  # those that were there before; none until training starts

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        super().on_train_start(trainer, module)
        self._watch(trainer)

    def _watch(self, trainer: Trainer) -> None:
        self._speaks = trainer.is_global_zero and not launched_here()  # the process that launched it does
        names = ["SIGINT", "SIGTERM", "SIGHUP"]
        if "SLURM_JOB_ID" in os.environ or "SUBMITIT_EXECUTOR" in os.environ:
            names += ["SIGUSR1", "SIGUSR2"]
        signals = [getattr(signal, name) for name in names if hasattr(signal, name)]  # Windows lacks some
        signals = [each for each in signals if each != HANGUP or signal.getsignal(each) != signal.SIG_IGN]
        self._handlers = {each: signal.signal(each, self._on_signal) for each in signals}

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            raise SystemExit(_status(signum))
        self._signal = signum
        if not self._speaks:
            return
        # Not by logging, which may be at work in the very line that the signal interrupted.
        with contextlib.suppress(OSError):
            os.write(2, f"{signal.Signals(signum).name}: stopping after this step (again: stop at once)\n".encode())

    def on_step_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._stopping = self._signal is not None
        if trainer.world_size > 1:  # one process may have had the signal a step before another
            # All are asked only now and then, since they have to wait for one another.
            asked = is_logged(trainer, trainer.global_step) or trainer.global_step >= trainer.max_steps
            self._stopping = asked and trainer.strategy.reduce_boolean_decision(self._stopping, all=False)
        if self._stopping:
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, LastCheckpoint):
                    self._saved = True
                    callback.is_asked = True  # it comes after all others, whose states it saves

    # Not at once after saving, because Lightning logs a step's metrics after that.

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._stop_if_asked(trainer)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._stop_if_asked(trainer)
        self._restore_handlers()

    # A test has nothing to save: it ends as soon as it can.

    def on_test_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._watch(trainer)

    def on_test_batch_start(self, *_: Any) -> None:
        if self._signal is not None:
            raise SystemExit(_status(self._signal))

    def on_test_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._restore_handlers()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self._restore_handlers()

    def _stop_if_asked(self, trainer: Trainer) -> None:
        if self._stopping:
            before = self._handlers.get(self._signal or 0)
            if self._saved and getattr(before, "__module__", "").startswith("submitit."):
                with contextlib.suppress(
                    Exception
                ):  # it does not start again for ever; if it does, the process ends here
                    before(self._signal, None)  # type: ignore[misc]
            # The others end with 0: any other status has torchrun and srun end the first one before it has reported.
            status = _status(self._signal or signal.SIGTERM) if trainer.is_global_zero else 0
            raise Stopped(status, trainer.global_step, saved=self._saved)

    def _restore_handlers(self) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers = {}


def _status(signum: int) -> int:
    return 128 + (signum if signum in (signal.SIGINT, HANGUP) else signal.SIGTERM)

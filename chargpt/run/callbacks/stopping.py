"""What ends a run: signals, a loss that is no longer finite, and the last step, which is validated."""

import contextlib
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from chargpt.errors import NonFiniteError, Stopped
from chargpt.module import is_logged
from chargpt.run.callbacks.saving import AtStepEnd, LastCheckpoint
from chargpt.run.devices import launched_here

SIGHUP = 1  # Windows lacks it
ONE = 0.5  # seconds within which signals count as one: a launcher passes Ctrl-C on, a finger slips
ADVICE = (
    "; earlier checkpoints are kept. A lower optimizer.lr, a longer optimizer.warmup_steps, trainer.gradient_clip_val=1"
    " or trainer.precision=32-true may help"
)


class StopOnSignal(AtStepEnd):
    """SIGINT (Ctrl-C), SIGTERM, SIGHUP (a closed terminal; not under nohup) and, from SLURM or submitit, SIGUSR1 and
    SIGUSR2 let the step end, have it saved, and end the process with 128 + the signal (SIGTERM for the last two). A
    second signal ends it at once. submitit's own handler then requeues the job.
    """

    _signal: int | None = None
    _since = 0.0
    _speaks = True
    _stopping = False
    _saved = False

    def __init__(self) -> None:
        self._handlers: dict[int, Any] = {}  # those that were there before; none until training starts

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        super().on_train_start(trainer, module)
        self._watch(trainer)

    def _watch(self, trainer: Trainer) -> None:
        if threading.current_thread() is not threading.main_thread():  # Python allows no handlers there
            return
        self._speaks = trainer.is_global_zero and not launched_here()  # the process that launched it does
        names = ["SIGINT", "SIGTERM", "SIGHUP"]
        if "SLURM_JOB_ID" in os.environ or "SUBMITIT_EXECUTOR" in os.environ:
            names += ["SIGUSR1", "SIGUSR2"]
        signals = [getattr(signal, name) for name in names if hasattr(signal, name)]  # Windows lacks some
        signals = [each for each in signals if each != SIGHUP or signal.getsignal(each) != signal.SIG_IGN]
        self._handlers = {each: signal.signal(each, self._on_signal) for each in signals}

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            if time.monotonic() - self._since < ONE:
                return
            raise SystemExit(_status(signum))
        self._signal, self._since = signum, time.monotonic()
        if self._speaks:  # not by logging, which may be at work in the line that the signal interrupted
            with contextlib.suppress(OSError):
                os.write(2, f"{signal.Signals(signum).name}: stopping after this step (again: stop at once)\n".encode())

    def on_step_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._stopping = self._signal is not None
        if trainer.world_size > 1:  # one rank may have had the signal a step before another
            # They are asked only now and then, since they have to wait for one another.
            asked = is_logged(trainer, trainer.global_step) or trainer.global_step >= trainer.max_steps
            self._stopping = asked and trainer.strategy.reduce_boolean_decision(self._stopping, all=False)
        for callback in trainer.checkpoint_callbacks if self._stopping else ():
            if isinstance(callback, LastCheckpoint):
                self._saved = callback.is_asked = True  # it comes after all others, whose states it saves

    # Not right after saving, because Lightning logs a step's metrics after that.

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
                with contextlib.suppress(Exception):  # it raises if it has requeued often enough, else ends the process
                    before(self._signal, None)  # type: ignore[misc]
            # The other ranks end with 0: any other status has torchrun and srun end rank 0 before it has reported.
            status = _status(self._signal or signal.SIGTERM) if trainer.is_global_zero else 0
            raise Stopped(status, trainer.global_step, saved=self._saved)

    def _restore_handlers(self) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers = {}


def _status(signum: int) -> int:
    return 128 + (signum if signum in (signal.SIGINT, SIGHUP) else signal.SIGTERM)


class StopOnNonFinite(Callback):
    """Ends the run with `NonFiniteError` if the loss is no longer finite, and keeps such weights from being saved.

    On a CPU every step is checked. Elsewhere, and on several devices, only logged steps are: each check makes the
    device finish its work, or all wait for one another. (`trainer.detect_anomaly` checks every operation, slowly.)
    """

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"]
        alone = loss.device.type == "cpu" and trainer.world_size == 1
        if not alone and not is_logged(trainer, trainer.global_step):
            return
        finite = bool(loss.isfinite())
        if trainer.world_size > 1:  # all end, or none: a rank that went on would wait for the others
            finite = trainer.strategy.reduce_boolean_decision(finite)
        if not finite:
            raise NonFiniteError(f"the training loss is {loss.item()} in step {trainer.global_step}{ADVICE}")

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        loss = trainer.callback_metrics["val/loss"]
        if not loss.isfinite():
            raise NonFiniteError(f"the validation loss is {loss.item()} after step {trainer.global_step}{ADVICE}")

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not all(bool(parameter.isfinite().all()) for parameter in module.parameters()):
            raise NonFiniteError(f"the weights are not finite after step {trainer.global_step}{ADVICE}")


class ValidateAtEnd(Callback):
    """Validates after the last step, also if it is no multiple of the validation interval: asked to stop, Lightning
    validates first. Otherwise a run shorter than the interval would have no best checkpoint."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step >= trainer.max_steps > 0:
            trainer.should_stop = True

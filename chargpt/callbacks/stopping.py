"""What ends a run: signals, a loss that is no longer finite, and the last step, which is validated."""

import contextlib
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from chargpt.callbacks.saving import AtStepEnd
from chargpt.command_line import TOGETHER, launched_here
from chargpt.errors import NonFiniteError, Stopped
from chargpt.module import is_logged

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]  # Windows lacks some
ADVICE = "; earlier checkpoints are kept. A lower optimizer.lr or trainer.gradient_clip_val=1 may help"


class StopOnSignal(AtStepEnd):
    """Stops at a signal: the step ends, is saved, and the process ends with 128 + the signal. A second signal ends it
    at once.

    SIGINT (Ctrl-C), SIGTERM, SIGHUP (a closed terminal; not under nohup), SIGUSR1 and SIGUSR2 (from SLURM and
    submitit), whose status is that of SIGTERM; submitit's own handler then requeues the job. (Lightning does not save
    at SIGINT and SIGTERM, and its own files for SLURM would be loaded without a request.)
    """

    _signal: int | None = None
    _since = 0.0
    _handler_before: Any = None

    def __init__(self) -> None:
        self._handlers: dict[int, Any] = {}  # the earlier ones, during training

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        super().on_train_start(trainer, module)
        if threading.current_thread() is not threading.main_thread():  # Python allows no handlers in other threads
            return
        self._prints = trainer.is_global_zero and not launched_here()  # else the launching process prints
        heard = [each for each in SIGNALS if signal.getsignal(each) != signal.SIG_IGN]  # nohup ignores one
        self._handlers = {each: signal.signal(each, self._on_signal) for each in heard}

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            if time.monotonic() - self._since < TOGETHER:
                return
            raise SystemExit(_status(signum))
        self._signal, self._since, self._handler_before = signum, time.monotonic(), self._handlers.get(signum)
        if self._prints:  # without logging, which the signal may have interrupted
            with contextlib.suppress(OSError):
                os.write(2, f"{signal.Signals(signum).name}: stopping after this step (again: stop at once)\n".encode())

    # It stops when the next step begins, or training ends: by then this step is saved and logged.

    def on_step_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.world_size == 1 or is_logged(trainer, trainer.global_step):  # to agree, ranks wait for one another
            self._agree(trainer)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if self.stopping:
            self._stop(trainer)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._agree(trainer)  # the signal may have come in the last validation
        self._restore_handlers()  # before Lightning restores those before its own

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.stopping:
            self._stop(trainer)

    def on_exception(self, *_: Any) -> None:
        self._restore_handlers()

    def _agree(self, trainer: Trainer) -> None:
        """Stop on all ranks if one of them got a signal."""
        self.stopping = self._signal is not None
        if trainer.world_size > 1:
            self.stopping = trainer.strategy.reduce_boolean_decision(self.stopping, all=False)

    def _stop(self, trainer: Trainer) -> None:
        if getattr(self._handler_before, "__module__", "").startswith("submitit."):
            with contextlib.suppress(Exception):  # raised after the last allowed requeue; else it ends the process
                self._handler_before(self._signal, None)
        time.sleep(max(0.0, self._since + TOGETHER - time.monotonic()))  # a second signal may be on its way
        # The other ranks end with 0: at any other status, torchrun and srun would end rank 0 before it has reported.
        raise Stopped(_status(self._signal or signal.SIGTERM) if trainer.is_global_zero else 0)

    def _restore_handlers(self) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers = {}


def _status(signum: int) -> int:
    return 128 + (signum if signum in SIGNALS[:3] else signal.SIGTERM)


class StopOnNonFinite(Callback):
    """Ends the run with `NonFiniteError` if the loss is no longer finite, and keeps such weights from being saved.

    A CPU checks every step; other devices, and several, only logged ones: each check waits for the device, or for the
    other ranks. (`trainer.detect_anomaly` checks every operation, slowly.)
    """

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *batch: Any) -> None:
        loss = outputs["loss"]
        alone = loss.device.type == "cpu" and trainer.world_size == 1
        if not alone and not is_logged(trainer, trainer.global_step):
            return
        finite = bool(loss.isfinite())
        if trainer.world_size > 1:  # all ranks end together: a single one would be waited for
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
    """Validates after the last step, even if no validation is due: Lightning validates before a requested stop.
    Otherwise a run shorter than the interval would have no best checkpoint."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step >= trainer.max_steps:
            trainer.should_stop = True

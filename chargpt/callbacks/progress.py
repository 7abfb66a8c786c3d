"""How far a run is, on the terminal."""

import logging
import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from chargpt.command_line import in_sweep
from chargpt.module import CharLM, is_logged

log = logging.getLogger(__name__)

LEAST_STEPS, LEAST_SECONDS = 3, 5.0  # before the time left is estimated
LONG = 1800.0  # seconds; of a shorter run nobody needs to be warned
MUCH = 3e6  # parameters; with fewer, something else than the model's size makes a CPU slow


class Progress(ProgressBar):
    """A bar in optimizer steps on a terminal; elsewhere a line after each validation and every `seconds` at most.

    It looks at the loss only on steps that are logged, since every look makes the device finish its work. Soon after
    the start it says once how long the run will take, if that is long.

    Args:
        seconds: between two lines at least.
    """

    def __init__(self, seconds: float = 10.0):
        super().__init__()
        self.seconds = seconds
        self._estimated = False
        self._enabled = True
        self._bar: tqdm | None = None

    def disable(self) -> None:  # Lightning calls this on all processes but the first
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if not self._enabled:
            return
        self._first_step, self._started, self._printed = trainer.global_step, time.perf_counter(), time.perf_counter()
        if sys.stderr.isatty() and not in_sweep():
            self._bar = tqdm(total=trainer.max_steps, initial=trainer.global_step, unit="step", dynamic_ncols=True)
            self._redirect = logging_redirect_tqdm()  # log lines go above the bar, not through it
            self._redirect.__enter__()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if not self._enabled:
            return
        if not self._estimated:
            self._estimate(trainer)
        if not is_logged(trainer, trainer.global_step):
            return
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(self._values(trainer)), refresh=False)
            self._bar.update(trainer.global_step - self._bar.n)
        elif time.perf_counter() - self._printed >= self.seconds:
            self._print_line(trainer)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self._enabled and not trainer.sanity_checking and trainer.state.fn == "fit":
            if self._bar is not None:
                self._bar.update(trainer.global_step - self._bar.n)
            self._print_line(trainer)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
            self._redirect.__exit__(None, None, None)

    def _estimate(self, trainer: Trainer) -> None:
        """Say how long the run will take, once enough steps are done to know."""
        steps, spent = trainer.global_step - self._first_step, time.perf_counter() - self._started
        if steps < LEAST_STEPS or spent < LEAST_SECONDS:
            return
        self._estimated = True
        left = self._seconds_left(trainer)
        if left > LONG:
            advice = ""
            parameters = sum(parameter.numel() for parameter in trainer.lightning_module.parameters())
            if trainer.strategy.root_device.type == "cpu" and parameters > MUCH:
                advice = "; experiment=cpu trains a smaller model in minutes (Ctrl-C stops and saves this one)"
            log.info(f"This run will take about {left / 3600:.1f} hours on this {_device_name(trainer)}{advice}")

    def _seconds_left(self, trainer: Trainer) -> float:
        spent = time.perf_counter() - self._started
        return spent / max(1, trainer.global_step - self._first_step) * max(0, trainer.max_steps - trainer.global_step)

    def _print_line(self, trainer: Trainer) -> None:
        self._printed = time.perf_counter()
        left = tqdm.format_interval(self._seconds_left(trainer))
        log.info(", ".join([f"step {trainer.global_step}/{trainer.max_steps}", *self._values(trainer), f"{left} left"]))

    @staticmethod
    def _values(trainer: Trainer) -> list[str]:
        metrics = trainer.callback_metrics
        module = trainer.lightning_module
        of_bytes = isinstance(module, CharLM) and module.tokenizer.characters is None
        speed = "{:,.0f} bytes/s" if of_bytes else "{:,.0f} chars/s"
        shown = {"train/loss": "loss {:.4f}", "val/loss": "val loss {:.4f}", "chars_per_second": speed}
        return [text.format(metrics[name].item()) for name, text in shown.items() if name in metrics]


def _device_name(trainer: Trainer) -> str:
    return {"cpu": "CPU", "cuda": "GPU"}.get(trainer.strategy.root_device.type, "device")

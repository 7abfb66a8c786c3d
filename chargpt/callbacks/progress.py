"""The progress of a run on the terminal."""

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

LEAST_STEPS, LEAST_SECONDS = 3, 5.0  # before the remaining time is estimated
LONG = 1800.0  # seconds; a shorter run needs no warning
MUCH = 3e6  # parameters; a smaller model is not the reason why a CPU is slow


class Progress(ProgressBar):
    """A bar in optimizer steps on a terminal; elsewhere a line after each validation, and at most every `seconds`.

    Lightning's TQDMProgressBar counts batches, and waits for the GPU at each refresh; this one reads the loss on logged
    steps only. A long run is announced soon after its start.
    """

    def __init__(self, seconds: float = 10.0):
        super().__init__()
        self.seconds = seconds
        self._estimated = False
        self._enabled = True
        self._bar: tqdm | None = None

    def disable(self) -> None:  # Lightning calls this on all ranks but the first
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
        if is_logged(trainer, trainer.global_step):
            if self._bar is not None:
                self._bar.set_postfix_str(", ".join(_values(trainer)), refresh=False)
                self._bar.update(trainer.global_step - self._bar.n)
            elif time.perf_counter() - self._printed >= self.seconds:
                self._print_line(trainer)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self._enabled and not trainer.sanity_checking:
            if self._bar is not None:
                self._bar.update(trainer.global_step - self._bar.n)
            self._print_line(trainer)

    def on_train_end(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
            self._redirect.__exit__(None, None, None)

    def on_exception(self, *_: Any) -> None:
        self.on_train_end()

    def _estimate(self, trainer: Trainer) -> None:
        """Log how long the run will take, once enough steps are done to estimate it."""
        steps, spent = trainer.global_step - self._first_step, time.perf_counter() - self._started
        if steps < LEAST_STEPS or spent < LEAST_SECONDS:
            return
        self._estimated = True
        left, device = self._seconds_left(trainer), trainer.strategy.root_device.type
        if left > LONG:
            advice = ""
            if device == "cpu" and sum(each.numel() for each in trainer.lightning_module.parameters()) > MUCH:
                advice = "; experiment=cpu trains a smaller model in minutes (Ctrl-C stops and saves this one)"
            name = {"cpu": "CPU", "cuda": "GPU"}.get(device, "device")
            log.info(f"This run will take about {left / 3600:.1f} hours on this {name}{advice}")

    def _seconds_left(self, trainer: Trainer) -> float:
        spent = time.perf_counter() - self._started
        return spent / max(1, trainer.global_step - self._first_step) * max(0, trainer.max_steps - trainer.global_step)

    def _print_line(self, trainer: Trainer) -> None:
        self._printed = time.perf_counter()
        left = tqdm.format_interval(self._seconds_left(trainer))
        log.info(", ".join([f"step {trainer.global_step}/{trainer.max_steps}", *_values(trainer), f"{left} left"]))


def _values(trainer: Trainer) -> list[str]:
    """The losses and the speed."""
    metrics, module = trainer.callback_metrics, trainer.lightning_module
    unit = "bytes" if isinstance(module, CharLM) and module.tokenizer.characters is None else "chars"
    formats = {"train/loss": "loss {:.4f}", "val/loss": "val loss {:.4f}", "chars_per_second": f"{{:,.0f}} {unit}/s"}
    return [text.format(metrics[name].item()) for name, text in formats.items() if name in metrics]

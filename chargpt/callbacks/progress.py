"""The speed of training, and the progress of a run on the terminal."""

import logging
import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from chargpt.command_line import in_sweep
from chargpt.module import is_logged

log = logging.getLogger(__name__)

FORMATS = {"train/loss": "loss {:.4f}", "val/loss": "val loss {:.4f}", "chars_per_second": "{:,.0f} chars/s"}
SECONDS = 10.0  # between two lines, unless there is a validation


class Throughput(Callback):
    """Logs `chars_per_second`: characters trained on by all devices, per second of training.

    It is measured between logged steps, without the pauses between batches for validations (with their text samples
    and pictures) and saves. (Lightning's ThroughputMonitor waits for the GPU in every step, and needs functions.)
    """

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._step, self._since = trainer.global_step, time.perf_counter()
        self._paused: float | None = None

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._pause(trainer)

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._pause(trainer)

    def _pause(self, trainer: Trainer) -> None:
        if not trainer.sanity_checking and self._paused is None:
            if trainer.strategy.root_device.type != "cpu":
                torch.accelerator.synchronize()  # finish the training steps in the device's queue
            self._paused = time.perf_counter()

    def on_train_batch_start(self, *_: Any) -> None:
        if self._paused is not None:
            self._since += time.perf_counter() - self._paused
            self._paused = None

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        steps = trainer.global_step - self._step
        if steps and is_logged(trainer, trainer.global_step):
            characters = steps * trainer.accumulate_grad_batches * batch[0].numel() * trainer.world_size
            now = time.perf_counter()
            module.log("chars_per_second", characters / (now - self._since))
            self._step, self._since = trainer.global_step, now


class Progress(ProgressBar):
    """A bar in optimizer steps on a terminal; elsewhere a line after each validation, and at most every ten seconds.

    Lightning's TQDMProgressBar counts batches, and waits for the GPU at each refresh; this one reads the loss on logged
    steps only.
    """

    _enabled = True
    _bar: tqdm | None = None

    def disable(self) -> None:  # Lightning calls this on all ranks but the first
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._first_step, self._started = trainer.global_step, time.perf_counter()
        self._printed = self._started
        if self._enabled and sys.stderr.isatty() and not in_sweep():
            self._bar = tqdm(total=trainer.max_steps, initial=trainer.global_step, unit="step", dynamic_ncols=True)
            self._redirect = logging_redirect_tqdm()  # log lines go above the bar, not through it
            self._redirect.__enter__()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self._enabled and is_logged(trainer, trainer.global_step):
            if self._bar is not None:
                self._bar.set_postfix_str(", ".join(_values(trainer)), refresh=False)
                self._bar.update(trainer.global_step - self._bar.n)
            elif time.perf_counter() - self._printed >= SECONDS:
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

    def _print_line(self, trainer: Trainer) -> None:
        self._printed = time.perf_counter()
        pace = (self._printed - self._started) / max(1, trainer.global_step - self._first_step)
        left = tqdm.format_interval(pace * max(0, trainer.max_steps - trainer.global_step))
        log.info(", ".join([f"step {trainer.global_step}/{trainer.max_steps}", *_values(trainer), f"{left} left"]))


def _values(trainer: Trainer) -> list[str]:
    """The losses and the speed."""
    metrics = trainer.callback_metrics
    return [text.format(metrics[name].item()) for name, text in FORMATS.items() if name in metrics]

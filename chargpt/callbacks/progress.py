"""The speed of training, and the progress of a run on the terminal."""

import logging
import time
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

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

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._paused is None:
            if trainer.strategy.root_device.type != "cpu":
                torch.accelerator.synchronize()  # finish the training steps in the device's queue
            self._paused = time.perf_counter()

    on_save_checkpoint = on_validation_start  # type: ignore[assignment]  # a pause, too

    def on_train_batch_start(self, *_: Any) -> None:
        if self._paused is not None:
            self._since += time.perf_counter() - self._paused
            self._paused = None

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *batch: Any) -> None:
        steps = trainer.global_step - self._step
        if steps and is_logged(trainer, trainer.global_step):
            characters = steps * trainer.accumulate_grad_batches * batch[0][0].numel() * trainer.world_size
            now = time.perf_counter()
            module.log("chars_per_second", characters / (now - self._since))
            self._step, self._since = trainer.global_step, now


class Progress(Callback):
    """Logs a line after each validation, and at most every ten seconds: on a terminal, in a notebook and in a file.

    (Lightning's bars, for which `trainer.enable_progress_bar` has to be true, wait for the GPU at each refresh.)
    """

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._first_step, self._started = trainer.global_step, time.perf_counter()
        self._logged = self._started

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if is_logged(trainer, trainer.global_step) and time.perf_counter() - self._logged >= SECONDS:
            self._log(trainer)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._log(trainer)

    def _log(self, trainer: Trainer) -> None:
        self._logged = time.perf_counter()
        pace = (self._logged - self._started) / max(1, trainer.global_step - self._first_step)
        left = timedelta(seconds=round(pace * max(0, trainer.max_steps - trainer.global_step)))
        metrics = trainer.callback_metrics
        values = [text.format(metrics[name].item()) for name, text in FORMATS.items() if name in metrics]
        log.info(", ".join([f"step {trainer.global_step}/{trainer.max_steps}", *values, f"{left} left"]))

"""The speed of training."""

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from chargpt.module import is_logged


class Throughput(Callback):
    """Logs `chars_per_second`: characters trained on by all devices, per second of training.

    It is measured between logged steps, without the pauses between batches for validations (with their text samples
    and pictures) and saves. (Lightning's ThroughputMonitor waits for the GPU in every step, and needs functions.)
    """

    _paused: float | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._step, self._since = trainer.global_step, time.perf_counter()

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._pause(trainer)

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._pause(trainer)

    def on_train_batch_start(self, *_: Any) -> None:
        self._resume()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._resume()
        steps = trainer.global_step - self._step
        if steps and is_logged(trainer, trainer.global_step):
            characters = steps * trainer.accumulate_grad_batches * batch[0].numel() * trainer.world_size
            now = time.perf_counter()
            module.log("chars_per_second", characters / (now - self._since))
            self._step, self._since = trainer.global_step, now

    def _pause(self, trainer: Trainer) -> None:
        if self._paused is None and not trainer.sanity_checking:
            if trainer.strategy.root_device.type != "cpu":
                torch.accelerator.synchronize()  # finish the training steps in the device's queue
            self._paused = time.perf_counter()

    def _resume(self) -> None:
        if self._paused is not None:
            self._since += time.perf_counter() - self._paused
            self._paused = None

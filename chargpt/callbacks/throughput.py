"""How fast a run trains."""

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from chargpt.module import is_logged


class Throughput(Callback):
    """Logs `chars_per_second`: characters trained on, of all devices together, per second of training.

    Measured from one logged step to the next. What lies between the batches when a validation or a save comes there,
    text samples and their like included, does not count.
    """

    _paused: float | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._step, self._since = trainer.global_step, time.perf_counter()

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._pause(trainer)

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._pause(trainer)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._go_on()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._go_on()
        steps = trainer.global_step - self._step
        if steps and is_logged(trainer, trainer.global_step):
            characters = steps * trainer.accumulate_grad_batches * batch[0].numel() * trainer.world_size
            now = time.perf_counter()
            module.log("chars_per_second", characters / (now - self._since))
            self._step, self._since = trainer.global_step, now

    def _go_on(self) -> None:
        if self._paused is not None:
            self._since += time.perf_counter() - self._paused
            self._paused = None

    def _pause(self, trainer: Trainer) -> None:
        if self._paused is None and not trainer.sanity_checking:
            if trainer.strategy.root_device.type != "cpu":
                torch.accelerator.synchronize()  # the device may be busy with training still
            self._paused = time.perf_counter()

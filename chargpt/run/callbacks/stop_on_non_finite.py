"""A run whose loss is no longer a number."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from chargpt.errors import NonFiniteError
from chargpt.module import is_logged


class StopOnNonFinite(Callback):
    """Ends the run with `NonFiniteError` when the loss is no longer a number, and keeps such weights from being saved.

    On a CPU every step is looked at. Elsewhere, and with several devices, only those that are logged: each look makes
    the device finish its work, or all wait for one another.
    """

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"]
        alone = loss.device.type == "cpu" and trainer.world_size == 1
        if not alone and not is_logged(trainer, trainer.global_step):
            return
        finite = bool(loss.isfinite())
        if trainer.world_size > 1:  # all end, or none: one that went on would wait for the others
            finite = trainer.strategy.reduce_boolean_decision(finite)
        if not finite:
            raise NonFiniteError(f"the training loss is {loss.item()} in step {trainer.global_step}")

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        loss = trainer.callback_metrics["val/loss"]
        if not loss.isfinite():
            raise NonFiniteError(f"the validation loss is {loss.item()} after step {trainer.global_step}")

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not all(bool(parameter.isfinite().all()) for parameter in module.parameters()):
            raise NonFiniteError(f"the weights are not finite after step {trainer.global_step}")

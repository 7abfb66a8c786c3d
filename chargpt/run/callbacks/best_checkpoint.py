"""The weights of the lowest validation loss."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from chargpt.run.callbacks.averaging import validated_weights
from chargpt.run.checkpoints import save


class BestCheckpoint(Checkpoint):
    """Saves the weights of the lowest validation loss as `best.ckpt`.

    The lowest loss so far is the module's own, which a resumed run has back, also where its folder was moved:
    Lightning's ModelCheckpoint would then forget it and write over a better model.

    Args:
        dirpath: the folder of the file.
    """

    def __init__(self, dirpath: str):
        self.path = Path(dirpath, "best.ckpt")

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        metrics = trainer.callback_metrics
        if not trainer.sanity_checking and metrics["val/loss"] <= metrics["val/best_loss"]:
            with validated_weights(trainer, module):
                save(trainer, self.path, weights_only=True)

"""The losses of a run as a table, beside whatever logger it has."""

import math
import time
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from chargpt.curve import Point, append, keep_until


class Losses(Callback):
    """Adds a row to `losses.csv` after each validation. A resumed run continues the file from its step.

    Args:
        dirpath: the folder of the file.
    """

    def __init__(self, dirpath: str):
        self.folder = Path(dirpath)

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = keep_until(self.folder, trainer.global_step)
        self._since = time.perf_counter() - (kept[-1].seconds if kept else 0.0)

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            seconds = round(time.perf_counter() - self._since, 3)
            names = ("train/loss", "val/loss", "chars_per_second")
            losses = (float(trainer.callback_metrics.get(name, math.nan)) for name in names)
            append(self.folder, Point(trainer.global_step, seconds, *losses))

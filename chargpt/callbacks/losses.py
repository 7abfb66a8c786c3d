"""The losses of a run in its folder, whatever its logger: as a table and as a picture."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from chargpt.errors import NonFiniteError, Stopped
from chargpt.files import decoration, write
from chargpt.history import LOSSES, PICTURE, Point, add_losses, drop_losses_after, read_losses
from chargpt.pictures import png

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Losses(Callback):
    """Adds a row to `losses.csv` in `dirpath` after each validation, and draws the file as `loss.png` when a run ends,
    also by a signal or an infinite loss. A resumed run continues the file from its step."""

    def __init__(self, dirpath: str):
        self.folder = Path(dirpath)
        self._started = time.perf_counter()
        self._before = 0.0  # seconds of training up to the checkpoint that the run resumes from

    def _seconds(self) -> float:
        return round(self._before + time.perf_counter() - self._started, 3)

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._before = float(state_dict["seconds"])

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._started = time.perf_counter()
        with decoration(LOSSES):
            self.folder.mkdir(parents=True, exist_ok=True)
            drop_losses_after(self.folder, trainer.global_step)

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.sanity_checking:
            names = ("train/loss", "val/loss", "chars_per_second")
            values = (float(trainer.callback_metrics.get(name, math.nan)) for name in names)
            with decoration(LOSSES):
                add_losses(self.folder, Point(trainer.global_step, self._seconds(), *values))

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:  # if a disk is full, saves fail first
        with decoration(PICTURE):
            if points := read_losses(self.folder):
                write(self.folder / PICTURE, png(draw(points)))

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Stopped | NonFiniteError):
            self.on_fit_end(trainer, module)


def draw(points: Sequence[Point]) -> "Figure":
    """Both losses over the steps, with a star at the lowest validation loss."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    best = min(points, key=lambda point: point.val_loss)
    steps = [point.step for point in points]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    panel = figure.subplots()
    panel.plot(steps, [point.train_loss for point in points], color="C0", marker=".", alpha=0.6, label="training")
    panel.plot(steps, [point.val_loss for point in points], color="C1", marker=".", label="validation")
    lowest = f"lowest: {best.val_loss:.4f} at step {best.step:,}"
    panel.plot([best.step], [best.val_loss], "*", color="C3", markersize=11, label=lowest)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set(xlabel="step", ylabel="loss (nats)")
    panel.grid(alpha=0.3)
    panel.legend()
    return figure

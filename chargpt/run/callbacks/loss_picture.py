"""The losses of a run as a picture."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from chargpt.curve import PICTURE, Point, read_curve, thinned
from chargpt.errors import NonFiniteError, Stopped
from chargpt.files import write
from chargpt.pictures import png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_POINTS, MOST_MARKED = 5_000, 100  # a curve that is longer is thinned, and has no dots


class LossPicture(Callback):
    """Draws the run's `losses.csv` as `loss.png` once it has ended, also where a signal or the loss ended it.

    Args:
        dirpath: the folder of both.
    """

    def __init__(self, dirpath: str):
        self.folder = Path(dirpath)

    # After `on_train_end`, where others may still have something to save: a full disk should fail them first.

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._save()

    @rank_zero_only
    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Stopped | NonFiniteError):
            with suppress(OSError):  # what ended the run is what is to be told
                self._save()

    def _save(self) -> None:
        if points := read_curve(self.folder):
            write(self.folder / PICTURE, png(draw(points)))


def draw(points: Sequence[Point]) -> "Figure":
    """Both losses over the steps, and where the validation loss was lowest."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    best = min(points, key=lambda point: point.val_loss)
    points = thinned(points, MOST_POINTS)
    steps, marker = [point.step for point in points], "." if len(points) <= MOST_MARKED else ""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    panel = figure.subplots()
    panel.plot(steps, [point.train_loss for point in points], color="C0", marker=marker, alpha=0.6, label="training")
    panel.plot(steps, [point.val_loss for point in points], color="C1", marker=marker, label="validation")
    said = f"lowest: {best.val_loss:.4f} at step {best.step:,}"
    panel.plot([best.step], [best.val_loss], "*", color="C3", markersize=11, label=said)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set(xlabel="step", ylabel="loss (nats)")
    panel.grid(alpha=0.3)
    panel.legend()
    return figure

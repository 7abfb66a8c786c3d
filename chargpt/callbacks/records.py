"""What a run records beside its metrics: its losses in its folder; its configuration and HParams in TensorBoard."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from omegaconf import OmegaConf

from chargpt.errors import NonFiniteError, Stopped
from chargpt.files import best_effort, write_figure
from chargpt.history import LOSSES, PICTURE, Point, add_losses, read_job, read_losses


def tensorboards(trainer: Trainer) -> list[TensorBoardLogger]:
    """The TensorBoard loggers of a run, which may have others beside them."""
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def verbatim(text: str) -> str:
    """Markdown that shows a text unchanged."""
    return "    " + text.replace("\n", "\n    ")


class Losses(Callback):
    """Adds a row to `losses.csv` in the run's folder after each validation, and draws `loss.png` at the end, even after
    a signal or an infinite loss."""

    _before = 0.0  # seconds of training before the checkpoint that the run resumes from
    _started = 0.0  # when training began, less those seconds

    def _seconds(self) -> float:
        return round(time.perf_counter() - self._started, 3)

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._before = float(state_dict["seconds"])

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._started = time.perf_counter() - self._before

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        names = ("train/loss", "val/loss", "chars_per_second")
        values = (float(trainer.callback_metrics.get(name, math.nan)) for name in names)
        with best_effort(LOSSES):
            add_losses(Path(trainer.default_root_dir), Point(trainer.global_step, self._seconds(), *values))

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:  # if a disk is full, saves fail first
        with best_effort(PICTURE):
            folder = Path(trainer.default_root_dir)
            if points := read_losses(folder):
                write_figure(folder / PICTURE, draw(points))

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, Stopped | NonFiniteError):
            self.on_fit_end(trainer, module)


class RunRecord(Callback):
    """Logs a run's configuration as text, and its HParams with the best validation loss.

    `save_hyperparameters` would log them before there is a loss, and TensorBoard's tab shows only metrics that are
    logged together with them.

    Args:
        settings: a `chargpt.run.config.Settings`.
        recorded: whether the HParams were logged before the run was resumed.
    """

    def __init__(self, settings: Any, *, recorded: bool):
        self.settings, self._recorded = settings, recorded

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        config = OmegaConf.to_yaml(OmegaConf.create(asdict(self.settings)))
        text = verbatim(f"# trained on {module.hparams['corpus']['name']}\n{config}")
        for logger in tensorboards(trainer):
            logger.experiment.add_text("config", text, trainer.global_step)

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self._recorded:
            return
        job = read_job(Path(self.settings.run_dir))
        swept = {f"* {key}": value for key, value in job.values.items()} if job else {}  # the star sorts them first
        hparams = swept | {
            "text": module.hparams["corpus"]["name"],
            "seed": self.settings.seed,
            "model": asdict(self.settings.model),
            "optimizer": asdict(self.settings.optimizer),
            "batch_size": self.settings.data.batch_size,
            "max_steps": trainer.max_steps,
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "precision": trainer.precision,
        }
        best = {"val/best_loss": trainer.callback_metrics["val/best_loss"]}
        for logger in tensorboards(trainer):
            logger.log_hyperparams(hparams, best, step=trainer.global_step)
        self._recorded = True


def draw(points: Sequence[Point]) -> Figure:
    """Both losses over the steps, with a star at the lowest validation loss."""
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

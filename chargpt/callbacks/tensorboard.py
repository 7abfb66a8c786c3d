"""The configuration and the HParams of a run in TensorBoard, and what all callbacks that write there share."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from chargpt.history import read_job

if TYPE_CHECKING:
    from chargpt.run.config import Settings


def tensorboards(trainer: Trainer) -> list[TensorBoardLogger]:
    """The TensorBoard loggers of a run, which may have others beside them."""
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def verbatim(text: str) -> str:
    """Markdown that shows a text unchanged."""
    return "    " + text.replace("\n", "\n    ")


class RunRecord(Callback):
    """Logs a run's configuration as text, and its HParams with the best validation loss.

    `save_hyperparameters` would log them before there is a loss, and TensorBoard's tab shows only metrics that are
    logged together with them.
    """

    def __init__(self, settings: "Settings"):
        self.settings = settings
        self._recorded = False

    def state_dict(self) -> dict[str, bool]:
        return {"recorded": self._recorded}

    def load_state_dict(self, state_dict: dict[str, bool]) -> None:
        self._recorded = bool(state_dict["recorded"])

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        config = OmegaConf.to_yaml(OmegaConf.create(asdict(self.settings)))
        text = verbatim(f"# trained on {module.hparams['corpus']['name']}\n{config}")
        for logger in tensorboards(trainer):
            logger.experiment.add_text("config", text, trainer.global_step)

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        loggers = tensorboards(trainer)
        if not loggers or trainer.sanity_checking or self._recorded:
            return
        swept = read_job(Path(self.settings.run_dir)).get("values", {})
        hparams = {f"* {key}": value for key, value in swept.items()} | {  # sorted by name, the star puts them first
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
        for logger in loggers:
            logger.log_hyperparams(hparams, best, step=trainer.global_step)
        self._recorded = True

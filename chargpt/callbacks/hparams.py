"""What tells one run from another, in TensorBoard."""

from dataclasses import asdict
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from chargpt.history import read_job
from chargpt.run.config import Settings


class RunRecord(Callback):
    """Records a run's configuration as text, and its HParams with the best validation loss.

    Args:
        settings: those of the run.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self._recorded = False

    def state_dict(self) -> dict[str, bool]:
        return {"recorded": self._recorded}

    def load_state_dict(self, state_dict: dict[str, bool]) -> None:
        self._recorded = bool(state_dict["recorded"])

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if isinstance(trainer.logger, TensorBoardLogger):
            config = OmegaConf.to_yaml(OmegaConf.create(asdict(self.settings)))
            text = f"# trained on {module.hparams['corpus']['name']}\n{config}"
            trainer.logger.experiment.add_text("config", verbatim(text), trainer.global_step)

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if isinstance(trainer.logger, TensorBoardLogger) and not trainer.sanity_checking and not self._recorded:
            # The tab shows only metrics that were named together with the hyper-parameters.
            best = trainer.callback_metrics["val/best_loss"]
            # It sorts them by name: the star puts the swept ones first.
            swept = read_job(Path(self.settings.run_dir)).get("values", {})
            hparams = {f"* {key}": value for key, value in swept.items()} | {
                "text": module.hparams["corpus"]["name"],
                "seed": self.settings.seed,
                "model": asdict(self.settings.model),
                "optimizer": asdict(self.settings.optimizer),
                "batch_size": self.settings.data.batch_size,
                "max_steps": trainer.max_steps,
                "accumulate_grad_batches": trainer.accumulate_grad_batches,
                "precision": trainer.precision,
            }
            trainer.logger.log_hyperparams(hparams, {"val/best_loss": best}, step=trainer.global_step)
            self._recorded = True


def verbatim(text: str) -> str:
    """Markdown that shows the text as it stands."""
    return "    " + text.replace("\n", "\n    ")

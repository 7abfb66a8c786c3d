"""Train a character-level language model: `python train.py model.n_layer=6 trainer.devices=1`."""

import errno
import logging
import sys
import time
import warnings
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from chargpt import config
from chargpt.errors import UserError

log = logging.getLogger("train")
config.register()


def train(cfg: DictConfig) -> float:
    """Train as the configuration says.

    Args:
        cfg: what `conf/train.yaml` composes.

    Returns:
        The best validation loss, in nats a character.

    Raises:
        UserError: the configuration or the text cannot be used.
    """
    # Imported here, so that composing, --help and Hydra's own errors do not wait for them.
    from lightning.pytorch import seed_everything
    from lightning.pytorch.utilities import rank_zero_only

    from chargpt.callbacks import RunRecord
    from chargpt.data import CharDataModule
    from chargpt.module import CharLM
    from chargpt.trainer import build_callbacks, build_trainer

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # One process makes the batches, in less time than it takes to move them between processes.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    # Lightning 2.6 asks torch 2.13 for a type that it still has; nothing here can change that.
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated")

    started = time.perf_counter()
    run_dir = _short(cfg.run_dir)
    config.check_keys(cfg)
    settings = OmegaConf.to_container(cfg, resolve=True)
    if settings["seed"] < 0:
        raise UserError(f"seed must be at least 0; got {settings['seed']}")
    seed_everything(settings["seed"], workers=True, verbose=False)
    data = CharDataModule(**settings["data"])
    data.setup()
    corpus = data.corpus
    module = CharLM(settings["model"], settings["optimizer"], corpus.tokenizer.characters, corpus.name)
    callbacks = [RunRecord(settings), *build_callbacks(settings["callbacks"])]
    trainer = build_trainer(settings["trainer"], callbacks)
    if rank_zero_only.rank == 0:
        _claim(run_dir)

    parameters = sum(parameter.numel() for parameter in module.net.parameters())
    log.info(
        f"Text: {corpus.name}, {len(corpus.ids):,} characters, {corpus.tokenizer.vocab_size:,} of them distinct\n"
        f"Model: {settings['model']['name']}, {parameters:,} parameters, on {trainer.strategy.root_device}"
        f" in {trainer.precision}\n"
        f"Run: {run_dir}"
    )
    trainer.fit(module, data)
    best = float(trainer.callback_metrics.get("val/best_loss", "inf"))
    log.info(
        f"\nBest validation loss {best:.4f} (nats a character, on {corpus.name}),"
        f" {trainer.global_step} steps in {time.perf_counter() - started:.0f} s\n"
        f"Checkpoint:  {run_dir / 'checkpoints' / 'best.ckpt'}\n"
        f"Sample it:   python sample.py --ckpt {run_dir}\n"
        f"See curves:  tensorboard --logdir {run_dir}"
    )
    return best


def _short(folder: str) -> Path:
    """The folder as one would type it: relative where it lies below the working directory."""
    path = Path(folder)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _claim(run_dir: Path) -> None:
    """Make the run's folder of checkpoints; only one run can, so no run writes over another's."""
    try:
        Path(run_dir, "checkpoints").mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"{run_dir} holds a run already; hydra.run.dir=... names another folder") from None


_failed: list[str] = []  # the jobs of a sweep that did not end well


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """One run, or one job of a sweep: there a job that fails leaves its reason in its own log, and the rest go on."""
    try:
        return train(cfg)
    except UserError as error:
        log.error(f"error: {error}")
        status = 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        log.error(f"error: {config.output_folder_error(cfg.run_dir, error)}")
        status = 2
    except Exception:
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            raise
        log.exception("error: this job failed")
        status = 1
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        sys.exit(status)
    _failed.append(str(_short(cfg.run_dir)))
    return float("inf")


if __name__ == "__main__":
    main()
    if _failed:
        sys.exit(f"error: {len(_failed)} of the sweep's jobs failed: {', '.join(_failed)}")

"""Train a character-level language model: `python train.py model.n_layer=6 trainer.devices=1`."""

import errno
import logging
import re
import sys
import time
import warnings
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from chargpt import config
from chargpt.errors import NonFiniteError, UserError
from chargpt.resume import (
    Resumption,
    check_resumption,
    load_state,
    point_to_run,
    resumed_config,
    settle_events,
    store_config,
)

log = logging.getLogger("train")
config.register()


def train(cfg: DictConfig, resumption: Resumption | None = None) -> float:
    """Train as the configuration says.

    Args:
        cfg: what `conf/train.yaml` composes.
        resumption: the state of training to go on from.

    Returns:
        The best validation loss, in nats a character.

    Raises:
        UserError: the configuration or the text cannot be used.
        NonFiniteError: the loss is no longer a number.
    """
    # Imported here, so that composing, --help and Hydra's own errors do not wait for them.
    from lightning.pytorch import seed_everything
    from lightning.pytorch.utilities import rank_zero_only

    from chargpt.callbacks import RunRecord
    from chargpt.compiling import compile_model
    from chargpt.data import CharDataModule
    from chargpt.module import CharLM
    from chargpt.trainer import build_callbacks, build_trainer

    _quieten(is_first=rank_zero_only.rank == 0)
    started = time.perf_counter()
    run_dir = _short(cfg.run_dir)
    config.check_keys(cfg)
    settings = OmegaConf.to_container(cfg, resolve=True)
    if not 0 <= settings["seed"] < 2**32:
        raise UserError(f"seed must be at least 0 and below 2**32; got {settings['seed']}")
    seed_everything(settings["seed"], workers=True, verbose=False)
    data = CharDataModule(**settings["data"])
    data.setup()
    corpus = data.corpus
    if resumption is not None:
        check_resumption(resumption, settings, corpus)
        if isinstance(settings["trainer"].get("logger"), dict):  # curves go on where the saved state stands
            settings["trainer"]["logger"]["purge_step"] = resumption.step + 1
    text = {"name": corpus.name, "sha256": corpus.sha256}
    module = CharLM(settings["model"], settings["optimizer"], corpus.tokenizer.characters, text)
    callbacks = [RunRecord(settings), *build_callbacks(settings["callbacks"])]
    trainer = build_trainer(settings["trainer"], callbacks)
    if trainer.world_size > 1 and HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        raise UserError("a sweep trains each job on one device: its other processes would each sweep again")
    if resumption is not None and resumption.step >= trainer.max_steps:
        log.info(
            f"{run_dir} is finished: {resumption.step} steps. To go on, say trainer.max_steps= with a larger number."
        )
        return resumption.best
    steps = trainer.max_steps - (resumption.step if resumption else 0)
    compiled = compile_model(module.net, settings["compile"], trainer.strategy.root_device, steps)
    if rank_zero_only.rank == 0:
        if resumption is None:
            _claim(run_dir)
        else:
            store_config(cfg, run_dir)
            settle_events(run_dir)

    parameters = sum(parameter.numel() for parameter in module.net.parameters())
    log.info(
        f"Text: {corpus.name}, {len(corpus.ids):,} characters, {corpus.tokenizer.vocab_size:,} of them distinct\n"
        f"Model: {settings['model']['name']}, {parameters:,} parameters, on {trainer.strategy.root_device}"
        f" in {trainer.precision}{', compiled' if compiled else ''}\n"
        f"Run: {run_dir}" + (f", from step {resumption.step}" if resumption else "")
    )
    trainer.fit(module, data, ckpt_path=resumption and resumption.checkpoint, weights_only=True)
    best = float(trainer.callback_metrics.get("val/best_loss", "inf"))
    log.info(
        f"\nBest validation loss {best:.4f} (nats a character, on {corpus.name}),"
        f" {trainer.global_step} steps in {time.perf_counter() - started:.0f} s\n"
        f"Checkpoint:  {run_dir / 'checkpoints' / 'best.ckpt'}\n"
        f"Sample it:   python sample.py --ckpt {run_dir}\n"
        f"See curves:  tensorboard --logdir {run_dir}"
    )
    return best


def _quieten(*, is_first: bool) -> None:
    """Leave the word to what a person wants to know, and to the first of several processes."""
    for name in ("lightning.pytorch", "lightning.fabric", *([] if is_first else ["train", "chargpt"])):
        logging.getLogger(name).setLevel(logging.WARNING)
    # One process makes the batches, in less time than it takes to move them between processes.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    # Lightning 2.6 asks torch 2.13 for a type that it still has; nothing here can change that.
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated")


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
    resumption = None
    try:
        if cfg.resume:
            run = Path(cfg.resume)
            cfg = resumed_config(run, HydraConfig.get().overrides.task)
            resumption = load_state(run)
        return train(cfg, resumption)
    except Exception as error:
        ending = _ending(error, cfg.run_dir)
        if ending is None and HydraConfig.get().mode != RunMode.MULTIRUN:
            raise
        if ending is None:
            log.exception("error: this job failed")
        else:
            log.error(f"error: {ending[0]}")
        if HydraConfig.get().mode != RunMode.MULTIRUN:
            sys.exit(ending[1])
    _failed.append(str(_short(cfg.run_dir)))
    return float("inf")


def _ending(error: Exception, run_dir: str) -> tuple[str, int] | None:
    """What to say and the status to exit with, for an error that needs no traceback."""
    if isinstance(error, UserError):
        return str(error), 2
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
        return config.output_folder_error(run_dir, error), 2
    if isinstance(error, NonFiniteError):
        return (
            f"{error}; what was saved before is in {_short(run_dir)}/checkpoints. A lower optimizer.lr, a longer"
            " optimizer.warmup_steps, trainer.gradient_clip_val=1 or trainer.precision=32-true may help"
        ), 1
    if isinstance(error, MemoryError) or re.search(r"out of memory|can't allocate memory", str(error)):
        return (
            "out of memory: a smaller data.batch_size needs less, with trainer.accumulate_grad_batches= to make up for"
            " it, or a smaller model.block_size, or trainer.precision=bf16-mixed"
        ), 1
    return None


if __name__ == "__main__":
    try:
        sys.argv[1:] = point_to_run(sys.argv[1:])
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # before or after training; during it, the run saves first
        sys.exit(130)
    if _failed:
        sys.exit(f"error: {len(_failed)} of the sweep's jobs failed: {', '.join(_failed)}")

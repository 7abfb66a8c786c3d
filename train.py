"""Train a character-level language model: `python train.py model.n_layer=6 trainer.devices=1`."""

import errno
import logging
import math
import os
import re
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from chargpt.errors import NonFiniteError, Stopped, UserError, did_you_mean, first_line
from chargpt.run import config
from chargpt.run.folder import cannot_write, claim, settle_events, short, store_config
from chargpt.run.resume import CONF, Resumption, load_state, point_to_run, resumed_config
from chargpt.run.sweep import in_sweep

if TYPE_CHECKING:
    from chargpt.run.build import Run

log = logging.getLogger("train")
config.register()


def train(cfg: DictConfig, resumption: Resumption | None = None) -> float:
    """Train as the configuration says: build, fit, report.

    Args:
        cfg: what `conf/train.yaml` composes.
        resumption: the state of training to go on from.

    Returns:
        The best validation loss, in nats per character.

    Raises:
        UserError: the configuration or the text cannot be used.
        NonFiniteError: the loss is no longer a number.
        Stopped: a signal asked the run to stop.
    """
    # Imported here, so that composing, --help and completion do not wait for Lightning.
    from lightning.pytorch.utilities import rank_zero_only

    from chargpt.run.build import build

    started = time.perf_counter()
    _quieten(is_first=rank_zero_only.rank == 0)  # type: ignore[attr-defined]  # Lightning sets it on the function
    run = build(config.read_config(cfg), resumption)
    folder = short(run.settings.run_dir)
    if resumption is not None and run.finished:
        log.info(
            f"{folder} is finished: {resumption.step} steps. To go on, say trainer.max_steps= with a larger number."
        )
        return resumption.best
    if run.trainer.is_global_zero:
        _prepare_folder(cfg, run)
    log.info(run.describe())
    log.info(f"Run: {folder}" + (f", from step {resumption.step}" if resumption else ""))
    try:
        run.trainer.fit(
            run.module, run.data, ckpt_path=resumption.checkpoint if resumption else None, weights_only=True
        )
    except Stopped as stop:
        go_on = f"To go on: python train.py resume={folder}" if stop.saved else "Nothing was saved"
        log.warning(f"Stopped after step {stop.step}. {go_on}")
        raise
    return _report(run, time.perf_counter() - started)


def _prepare_folder(cfg: DictConfig, run: "Run") -> None:
    """Take the run's folder, and keep in it the configuration with what was chosen: the precision and the text."""
    if run.resumption is None:
        claim(run.settings.run_dir)
    else:
        settle_events(run.settings.run_dir)
    cfg = cfg.copy()
    cfg.trainer.precision = run.settings.trainer["precision"]
    if run.data.source != cfg.data.source:  # it goes on with this text, also where the other one can be had by then
        cfg.data.source, cfg.data.fallback = run.data.source, None
    store_config(cfg, run.settings.run_dir)


def _report(run: "Run", seconds: float) -> float:
    """Say how the run ended and what to do next; returns its best validation loss."""
    from lightning.pytorch.loggers import TensorBoardLogger

    folder, trainer = short(run.settings.run_dir), run.trainer
    best = float(trainer.callback_metrics.get("val/best_loss", math.inf))
    steps = f"{trainer.global_step} steps in {seconds:.0f} s"
    scored = f"Best validation loss {best:.4f} (nats per character, on {run.data.corpus.name}), {steps}"
    lines = ["", scored if best < math.inf else f"Not validated, {steps}"]
    file = folder / "checkpoints" / "best.ckpt"
    if file.exists():
        lines += [f"Checkpoint:  {file}", f"Sample it:   python sample.py --ckpt {folder}"]
    if isinstance(trainer.logger, TensorBoardLogger):
        lines.append(f"See curves:  tensorboard --logdir {folder}")
    elif trainer.logger is not None and trainer.logger.save_dir:
        lines.append(f"Metrics:     {trainer.log_dir or trainer.logger.save_dir}")
    log.info("\n".join(lines))
    return best


def _quieten(*, is_first: bool) -> None:
    """Silence Lightning's own messages, and on other ranks than the first all but warnings."""
    for name in ("lightning.pytorch", "lightning.fabric", *([] if is_first else ["train", "chargpt"])):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("profilers", "callbacks.early_stopping"):  # what these say was asked for
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.INFO)
    # One process makes the batches, in less time than it takes to move them between processes.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    # Lightning 2.6 asks torch 2.13 for a type that it still has; nothing here can change that.
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated")


_began: list[Path] = []  # the jobs that began, and of a sweep those that did not end well
_failed: list[Path] = []


@hydra.main(config_path="conf", config_name="train", **config.VERSION_BASE)
def main(cfg: DictConfig) -> float | None:
    """One run, or one job of a sweep: there a job that fails leaves its reason in its own log, and the rest go on."""
    resumption = None
    _began.append(Path(cfg.run_dir))
    try:
        if cfg.resume:
            folder = Path(cfg.resume)
            cfg = resumed_config(cfg, folder, HydraConfig.get().overrides.task)
            resumption = load_state(folder)
        return train(cfg, resumption)
    except Exception as error:
        ending = _ending(error, short(Path(cfg.run_dir)))
        if not in_sweep():
            if ending is None:
                raise
            log.error(f"error: {ending[0]}")
            sys.exit(ending[1])
        if ending is None:
            log.exception("error: this job failed")
        else:
            log.error(f"error: {ending[0]}")
    _failed.append(short(Path(cfg.run_dir)))
    return math.inf


DISK = [getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES") if hasattr(errno, name)]


def _ending(error: Exception, folder: Path) -> tuple[str, int] | None:
    """What to say and the status to exit with, for an error that needs no traceback."""
    if isinstance(error, UserError):
        return str(error), 2
    if isinstance(error, HydraException | OmegaConfBaseException):
        override = [f"cannot read {error.override}"] if isinstance(error, OverrideParseException) else []
        lines = [*override, *(first_line(each) for each in (error, error.__cause__) if each)]
        return ": ".join(dict.fromkeys(lines)) + _hint(error), 2
    if isinstance(error, OSError) and error.errno in DISK:
        return cannot_write(folder, error), 2
    if isinstance(error, NonFiniteError):
        return (
            f"{error}; what was saved before is in {folder}/checkpoints. A lower optimizer.lr, a longer"
            " optimizer.warmup_steps, trainer.gradient_clip_val=1 or trainer.precision=32-true may help"
        ), 1
    if isinstance(error, MemoryError) or re.search(r"out of memory|can't allocate memory", str(error)):
        return (
            "out of memory: a smaller data.batch_size needs less, with trainer.accumulate_grad_batches= to make up for"
            " it, or a smaller model.block_size, or trainer.precision=bf16-mixed"
        ), 1
    return None


def _hint(error: Exception) -> str:
    """What may have been meant by a key or an option that Hydra does not know."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and "/" in error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return did_you_mean(option, [file.stem for file in (CONF / group).glob("*.yaml")], f"{group}=")
    cause = error.__cause__
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and OmegaConf.is_dict(cause.parent_node):
        prefix = str(cause.full_key).removesuffix(str(cause.key))
        return did_you_mean(str(cause.key), map(str, cause.parent_node), prefix)
    return ""


if __name__ == "__main__":
    os.environ["HYDRA_FULL_ERROR"] = "1"  # what Hydra raises before a job begins comes here, to be told in a line
    try:
        sys.argv[1:] = point_to_run(sys.argv[1:])
        main()
    except KeyboardInterrupt:  # before or after training; during it, the run saves first
        sys.exit(130)
    except Exception as error:
        ending = _ending(error, Path())
        if isinstance(error, OSError) and error.filename and not _began:  # Hydra could not make the folder
            ending = cannot_write(short(Path(error.filename)), error), 2
        if ending is None:
            raise
        print(f"error: {ending[0]}", file=sys.stderr)
        sys.exit(ending[1])
    if _failed:
        sys.exit(f"error: {len(_failed)} of the sweep's jobs failed: {', '.join(map(str, _failed))}")

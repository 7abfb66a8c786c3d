"""Train a character-level language model: `python train.py model.n_layer=6 trainer.devices=1`."""

import logging
import math
import os
import re
import shlex
import sys
import time
import traceback
import warnings
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from chargpt.checkpoint import read_checkpoint
from chargpt.compare import report, save
from chargpt.curve import read_curve
from chargpt.errors import Stopped, UserError, first_line, escape, tell
from chargpt.jobs import Job, read_sweep
from chargpt.run import config
from chargpt.run.endings import cannot_write, ending
from chargpt.run.folder import claim, has_state, held, settle_events, short
from chargpt.run.job import in_sweep, recorded, tell_of, this_job
from chargpt.run.launched import arguments_of_rank, is_first, let_the_first_speak
from chargpt.run.messages import Printable
from chargpt.run.ranks import together
from chargpt.run.resume import Resumption, load_state, point_to_run
from chargpt.run.stored import check_choices, command_to_go_on, resumed_config, store_config
from chargpt.run.sweep import RecordSweep
from chargpt.run.verdict import verdict

if TYPE_CHECKING:
    from chargpt.run.build import Run
    from chargpt.run.initial import Initial

log = logging.getLogger("train")
logging.getLogger("matplotlib").setLevel(logging.WARNING)  # torchmetrics imports it, and it tells of its fonts
config.register()


def train(cfg: DictConfig, resumption: Resumption | None = None) -> float:
    """Train as the configuration says: build, fit, report.

    Args:
        cfg: what `conf/train.yaml` composes.
        resumption: the state of training to go on from.

    Returns:
        The best validation loss, in nats per id.

    Raises:
        UserError: the configuration or the text cannot be used.
        NonFiniteError: the loss is no longer a number.
        Stopped: a signal asked the run to stop.
    """
    # Imported here, so that composing, --help and completion do not wait for Lightning.
    from chargpt.run.build import build
    from chargpt.run.initial import begin_from

    started = time.perf_counter()
    _quieten()
    initial = None
    if cfg.init_from is not None and resumption is None:
        cfg, initial = begin_from(cfg)
    run = build(config.read_config(cfg), resumption, initial)
    folder = Path(run.settings.run_dir)
    if resumption is not None and resumption.step >= run.trainer.max_steps:
        log.info(f"{short(folder)} is finished, {resumption.step} steps; a larger trainer.max_steps goes on")
        if run.data.test_ids is not None:
            log.info(_to_test(folder))
        return resumption.best
    with together(run.trainer, folder, _ending):
        _fit(run, cfg, resumption, initial)
        best = _report(run, time.perf_counter() - started, resumption.step if resumption else 0)
        if run.data.test_ids is not None and run.trainer.global_step >= run.trainer.max_steps:
            _test(run)
    return best


def _fit(run: "Run", cfg: DictConfig, resumption: Resumption | None, initial: "Initial | None") -> None:
    """Train in the run's folder, once it is the run's own; says how it begins, and where a signal ends it."""
    from chargpt.run.loggers import keep_rows

    folder = Path(run.settings.run_dir)
    if run.trainer.is_global_zero:
        cfg = _as_chosen(cfg, run)
        if resumption is None:
            claim(folder, OmegaConf.to_yaml(cfg))
            store_config(cfg, folder)
        else:  # a change that does not work is not kept
            run.restoring.at_first_step = partial(store_config, cfg, folder)
        settle_events(folder)
    log.info(run.describe())
    if initial is not None:
        log.info(f"Weights to start from: {initial.path}")
    log.info(f"Run: {short(folder)}" + (f", from step {resumption.step}" if resumption else ""))
    try:
        if run.trainer.is_global_zero:
            keep_rows(run.trainer.loggers, resumption.step if resumption else 0)
        run.trainer.fit(
            run.module, run.data, ckpt_path=resumption.checkpoint if resumption else None, weights_only=True
        )
    except Stopped as stop:
        go_on = f"To go on: {command_to_go_on(folder)}" if stop.saved else "Nothing was saved"
        log.warning(f"Stopped after step {stop.step}. {go_on}")
        raise
    except Exception as error:
        if run.restoring.done or ending(error, folder) is not None:
            raise
        raise _at_the_start(error, resumption) from error


def _at_the_start(error: Exception, resumption: Resumption | None) -> UserError:
    """Before the first step is made, what is wrong is what came from outside; the whole story goes to the log alone."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler) and handler.stream:
            handler.stream.write(escape("".join(traceback.format_exception(error))))
    where = f"{short(resumption.checkpoint)} cannot be gone on from" if resumption else "the run cannot begin"
    return UserError(f"{where}: {type(error).__name__}: {first_line(error)} (more in the run's log)")


def _as_chosen(cfg: DictConfig, run: "Run") -> DictConfig:
    """The configuration with the precision and the text that were chosen."""
    cfg = cfg.copy()
    cfg.trainer.precision = run.settings.trainer.get("precision")
    if run.data.source != cfg.data.source:  # it goes on with this text, also where the other one can be had by then
        cfg.data.source, cfg.data.fallback = run.data.source, None
    return cfg


def _test(run: "Run") -> None:
    """Score the test text by the weights of the best validation loss, which the run has from then on, and tell."""
    from chargpt.run.callbacks.averaging import validated_weights

    trainer, module, folder = run.trainer, run.module, Path(run.settings.run_dir)
    if trainer.fast_dev_run:  # type: ignore[attr-defined]  # the Trainer has it, undeclared
        return
    log.info("Scoring the test text")
    file, of = folder / "checkpoints" / "best.ckpt", "of the last step"
    # Rank 0 alone sees the folder; Lightning gives its weights to the others when the test begins.
    best = read_checkpoint(file) if trainer.is_global_zero and file.exists() else None
    try:
        with validated_weights(trainer, module):
            if best is not None and best.best_loss == float(module.best_val_loss.min_value):
                module.net.load_state_dict(best.model.state_dict())
                of = "of the best validation loss"
            [scores] = trainer.test(module, run.data, verbose=False)
    except SystemExit:
        log.warning(f"Stopped; the training is done and saved. {_to_test(folder)}")
        raise
    loss, unit = scores["test/loss"], run.data.tokenizer.unit
    log.info(f"Test loss {loss:.4f} ({loss / math.log(2):.4f} bits per {unit}), by the weights {of}")


def _to_test(folder: Path) -> str:
    return f"To score the test text: python -m chargpt.evaluate --split test --ckpt {shlex.quote(str(short(folder)))}"


def _report(run: "Run", seconds: float, first_step: int) -> float:
    """Say how the run ended and what to do next; returns its best validation loss.

    Args:
        seconds: since this start, at which it had made `first_step` steps.
    """
    from lightning.pytorch.loggers import TensorBoardLogger

    folder, trainer = short(Path(run.settings.run_dir)), run.trainer
    best, unit = float(run.module.best_val_loss.min_value), run.data.tokenizer.unit
    steps = f"{trainer.global_step - first_step} steps in {seconds:.0f} s"
    steps += f", {trainer.global_step} in all" if first_step else ""
    text = run.data.own.get("val", run.data.corpus)
    scored = f"Best validation loss {best:.4f} (nats per {unit}, on {text.name}), {steps}"
    lines = ["", scored if best < math.inf else f"Not validated, {steps}"]
    points, vocab_size = read_curve(Path(run.settings.run_dir)), run.data.tokenizer.vocab_size
    constant = run.module.optimizer_config.schedule == "constant"
    if said := verdict(points, trainer.max_steps, vocab_size, constant=constant):
        lines.append(said)
    if trainer.global_step < trainer.max_steps:  # a time limit, early stopping or the like
        lines.append(f"To go on:    {command_to_go_on(Path(run.settings.run_dir))}")
    file = folder / "checkpoints" / "best.ckpt"
    if file.exists():
        lines += [f"Checkpoint:  {file}", f"Sample it:   python sample.py --ckpt {shlex.quote(str(folder))}"]
        if run.data.tokenizer.characters is not None:
            lines.append(f"Look inside: python -m chargpt.page --ckpt {shlex.quote(str(folder))}")
    if isinstance(trainer.logger, TensorBoardLogger):
        lines.append(f"See curves:  tensorboard --logdir {shlex.quote(str(folder))}")
    elif trainer.logger is not None and trainer.logger.save_dir:
        lines.append(f"Metrics:     {trainer.log_dir or trainer.logger.save_dir}")
    log.info("\n".join(lines))
    return best


def _quieten() -> None:
    """Silence Lightning's own messages."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(name).handlers.clear()  # Hydra's handlers show what these say, too
    for name in ("profilers", "callbacks.early_stopping", "callbacks.timer"):  # what these say was asked for
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.INFO)
    # One process makes the batches, in less time than it takes to move them between processes.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*Experiment logs directory.*exists and is not empty.*")  # its rows are kept
    warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")  # a batch follows from the step alone
    warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint need to be provided.*")  # it was told
    # Lightning 2.6 asks torch 2.13 for a type that it still has; nothing here can change that.
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated")


@hydra.main(config_path="conf", config_name="train", **config.VERSION_BASE, **config.ALLOWED)
def main(cfg: DictConfig) -> float | None:
    """One run, or one job of a sweep."""
    if in_sweep():
        return job_of_sweep(cfg)
    try:
        return run_in_folder(cfg)
    except Exception as error:
        sys.exit(_tell(error))


def run_in_folder(cfg: DictConfig, job: Job | None = None) -> float:
    """Train in the folder that Hydra has for this run, in which nobody else is at work.

    Args:
        job: of a sweep, to record how it goes.

    Raises:
        UserError: the run cannot be begun there, or gone on with.
    """
    folder, overrides, resumption = Path(HydraConfig.get().runtime.output_dir), HydraConfig.get().overrides.task, None
    for deleted in filter(None, (re.fullmatch(r"~(callbacks\.[\w-]+)(=.*)?", each) for each in overrides)):
        OmegaConf.update(cfg, deleted[1], None, force_add=True)  # what is null is kept, to go on with
    if job is not None and cfg.resume:
        cfg.resume = str(folder) if has_state(folder) else None
        cfg.init_from = None if cfg.resume else cfg.init_from  # it goes on from its own weights
    if folder != Path(cfg.run_dir) or (cfg.resume and folder != Path(cfg.resume)):
        raise UserError("a run's folder is named on the command line, by hydra.run.dir=... or resume=...")
    with ExitStack() as stack:
        if is_first():
            stack.enter_context(held(folder))
        if job is not None:
            stack.enter_context(recorded(job, lambda error: _ending(error)[0]))
        if cfg.resume:
            if cfg.init_from is not None:
                raise UserError("init_from= begins a run, and resume= goes on with one: they do not go together")
            if job is not None:
                check_choices(folder, HydraConfig.get().runtime.choices)
            cfg = resumed_config(cfg, folder, overrides)
            resumption = load_state(folder)
        if job is not None and job.finished and resumption is not None:
            return resumption.best
        return train(cfg, resumption)


def job_of_sweep(cfg: DictConfig) -> float:
    """A job of a sweep. Its own lines go to its own log, and a line on the terminal says how it went. One that fails
    leaves the others to go on; its loss is infinite, as a sweeper needs a number."""
    job = this_job(cfg)
    for handler in logging.getLogger().handlers[:]:
        if not isinstance(handler, logging.FileHandler):
            logging.getLogger().removeHandler(handler)
    try:
        loss = run_in_folder(cfg, job)
    except Exception as error:
        _tell(error)
        tell_of(job, _ending(error)[0])
        return math.inf
    tell_of(job)
    return loss


def _ending(error: Exception, folder: Path | None = None) -> tuple[str, int, bool]:
    """What to say of an error, the status to exit with, and whether it is a bug.

    Args:
        folder: the run's, where it is not the one that Hydra has for this process.
    """
    said = ending(error, short(folder or Path(HydraConfig.get().runtime.output_dir)))
    return (*said, False) if said else (f"this is not foreseen: {type(error).__name__}: {first_line(error)}", 1, True)


def _tell(error: Exception) -> int:
    """Log an error, with its traceback where it is a bug; returns the status to exit with."""
    said, status, is_bug = _ending(error)
    log.error(f"error: {said}", exc_info=is_bug)
    if not is_first():  # whose log says nothing
        let_the_first_speak()
        tell(f"error: {said}")
    return status


def _end_of_sweep(folder: Path) -> str | None:
    """Say how the jobs of a sweep compare; returns what is wrong with it."""
    sweep = read_sweep(folder)
    if sweep.jobs or isinstance(sys.exception(), KeyboardInterrupt):  # else something is wrong with all
        print(f"\n{escape(report(sweep))}", file=sys.stderr)
        try:
            save(sweep)
        except UserError as error:
            return f"error: {error}"
    wrong = sweep.unfinished
    return f"error: {wrong} of {sweep.plan.jobs} jobs did not come to their end" if wrong else None


if __name__ == "__main__":
    os.environ["HYDRA_FULL_ERROR"] = "1"  # what Hydra raises before a job begins comes here, to be told in a line
    logging.lastResort = console = logging.StreamHandler()  # until Hydra has set up logging
    console.setFormatter(Printable())
    try:
        logging.disable(logging.NOTSET if is_first() else logging.CRITICAL)
        sys.argv[1:] = arguments_of_rank(point_to_run(sys.argv[1:]))
        try:
            main()
        finally:
            wrong = _end_of_sweep(RecordSweep.folder) if RecordSweep.folder else None
        sys.stdout.flush()  # what fails at the end is to be told, too
        sys.exit(wrong)
    except KeyboardInterrupt:  # before or after training; during it, the run saves first
        sys.exit(130)
    except Exception as error:
        said = ending(error, Path())
        if isinstance(error, OSError) and error.errno:  # Hydra could not make the folder, or show what it was asked for
            if error.filename:
                said = cannot_write(short(Path(error.filename)), error), 2
            else:
                said = f"cannot write to standard output: {error.strerror}", 2
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python writes what is left when it ends
        if said is None:  # before a job begins, it is about what Hydra was told
            said = f"{type(error).__name__}: {first_line(error)}", 2
        let_the_first_speak()
        print(f"error: {said[0]}", file=sys.stderr)
        sys.exit(said[1])

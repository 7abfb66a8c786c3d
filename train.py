"""Train a character-level language model: `python train.py model.n_layer=6 trainer.devices=1`."""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) == signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports ends without a traceback

import logging
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from chargpt import errors, sweep
from chargpt.errors import Stopped, UserError, first_line
from chargpt.history import read_job, write_record
from chargpt.run import config, devices, resume
from chargpt.run.folder import has_state, held

if TYPE_CHECKING:
    from chargpt.run.build import Run
    from chargpt.run.report import Outcome

log = logging.getLogger("train")
config.register()


def train(cfg: DictConfig, resumption: resume.Resumption | None = None) -> "Outcome":
    """Build a run, fit it and report."""
    # Imported here, so that --help and completion do not wait for Lightning.
    from chargpt.run import report
    from chargpt.run.build import begin_from, build

    started = time.perf_counter()
    report.quieten()
    cfg, initial = begin_from(cfg, resumption)
    run = build(config.read_config(cfg), resumption, initial)
    if resumption is not None and (outcome := report.finished_before(run, resumption)):
        return outcome
    report.begin(run, cfg, resumption, initial)
    fit(run, resumption)
    return report.end(run, time.perf_counter() - started, resumption)


def fit(run: "Run", resumption: resume.Resumption | None) -> None:
    """Train, and log how to resume if a signal or an error ends it."""
    try:
        run.trainer.fit(run.module, run.data, ckpt_path=resumption.path if resumption else None, weights_only=True)
    except (Stopped, Exception) as error:
        began = isinstance(error, Stopped) or run.state.stepped
        if began and run.trainer.is_global_zero:  # the others may have no folder
            how = devices.how_to_resume(Path(run.settings.run_dir))
            log.warning(f"{type(error).__name__} after step {run.trainer.global_step}; {how}")
        if began or errors.explain(error):
            raise
        log.debug("Before the first step:", exc_info=True)  # only in the run's log
        raise UserError(f"the run cannot begin: {type(error).__name__}: {first_line(error)}") from error
    except SystemExit as end:  # Lightning makes one of Ctrl-C before the first step and after the last
        if isinstance(end.__context__, KeyboardInterrupt):
            raise end.__context__ from None
        raise


def run_in_folder(cfg: DictConfig) -> "Outcome":
    """Train in Hydra's output folder, in which no other process works."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    if folder != Path(cfg.run_dir) or cfg.resume not in (None, "allow", str(folder)):
        raise UserError("a run's folder is named on the command line, by hydra.run.dir=... or resume=...")
    with held(folder) if devices.is_first() else nullcontext():
        resumption = resume.load_state(folder) if cfg.resume and (cfg.resume != "allow" or has_state(folder)) else None
        os.chdir(HydraConfig.get().runtime.cwd)  # paths are relative to it, also with hydra.job.chdir=true
        outcome = train(cfg, resumption)
        if devices.is_first() and (job := read_job(folder)):  # of a sweep, perhaps resumed by hand
            write_record(folder, replace(job, finished=outcome.finished, error=None))
        return outcome


@hydra.main(config_path=str(config.CONF), config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> float | None:
    """One run, or one job of a sweep."""
    try:
        with config.hydra_errors():
            if HydraConfig.get().mode == RunMode.MULTIRUN:  # a job of a sweep
                return sweep.run_job(cfg, run_in_folder)
            if (number := devices.to_start(cfg)) > 1:
                devices.launch(number, Path(HydraConfig.get().runtime.output_dir))
                return None
            return run_in_folder(cfg).best_loss
    except Exception as error:
        sys.exit(devices.report(error))  # through Hydra, it would get a second line


def command() -> None:
    """The command line; what Hydra refuses is reported in one line like everything else."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors
    devices.begin_rank()
    sweep.typed[:] = sys.argv[1:]
    with config.hydra_errors(), sweep.ending:
        sys.argv[1:] = devices.arguments_of_rank(resume.with_resume(sys.argv[1:]))
        main()


if __name__ == "__main__":
    sys.exit(errors.run(command, devices.report))

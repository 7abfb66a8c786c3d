"""A job of a sweep, in the process that runs it: what it differs by, and what becomes of it."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from chargpt import errors
from chargpt.command_line import in_sweep
from chargpt.errors import UserError, tell
from chargpt.run.config import hydra_errors, read_config
from chargpt.run.devices import number_of_devices
from chargpt.run.folder import has_state
from chargpt.run.resume import check_same, load_state
from chargpt.sweep.records import Job, read_job, read_plan
from chargpt.sweep.run import ONE_DEVICE, swept_in


def swept_values() -> dict[str, Any]:
    """The values by which this job of a sweep differs from the others; none outside of a sweep."""
    if not in_sweep():
        return {}
    hydra = HydraConfig.get()
    return swept_in(Path(hydra.runtime.cwd, hydra.sweep.dir), hydra.overrides.task)


def this_job(cfg: DictConfig) -> Job:
    """The job of a sweep that this process runs; finished if it was so before, and no other length is asked for now."""
    hydra, asked = HydraConfig.get(), OmegaConf.select(cfg, "trainer.max_steps")
    max_steps = asked if isinstance(asked, int) else 0  # what else it is will be refused
    folder, start = Path(hydra.runtime.output_dir), read_plan(Path(hydra.runtime.cwd, hydra.sweep.dir)).start
    before = read_job(folder)
    finished = before is not None and before.finished and before.max_steps == max_steps and has_state(folder)
    return Job(folder, hydra.job.num, swept_values(), start, max_steps, finished)


def run_job(cfg: DictConfig, run: Callable[[DictConfig], float]) -> float:
    """A job of a sweep: its own lines go to its log, and one line on the terminal shows how it went. If it fails, the
    others go on; its loss is then infinite, as a sweeper needs a number."""
    job = this_job(cfg)
    for handler in logging.getLogger().handlers[:]:
        if not isinstance(handler, logging.FileHandler):
            logging.getLogger().removeHandler(handler)
    job.write()
    was_finished, error = job.finished, None
    try:
        if number_of_devices(cfg.trainer) > 1:
            raise UserError(ONE_DEVICE)
        with hydra_errors():
            if was_finished:  # with the same settings
                from chargpt.run.init_from import begin_from  # imports torch

                state = load_state(job.folder)
                check_same(state, read_config(begin_from(cfg, state)[0]))
            else:
                run(cfg)
                job = replace(job, finished=True)
    except Exception as raised:
        errors.report(raised)
        error = errors.in_words(raised)
        job = replace(job, error=error)
    job.write()
    went = "not validated"
    if job.best:
        went = f"val loss {job.loss:.4f} at step {job.best.step:,}, {job.curve[-1].seconds:,.0f} s"
    went = f"failed: {error}" if error else went + (", finished before" if was_finished else "")
    of = read_plan(Path(HydraConfig.get().runtime.cwd, HydraConfig.get().sweep.dir)).jobs or "?"
    tell(f"{job.number + 1} of {of}: {job.title or 'the defaults'}: {went}")
    return math.inf if error else job.loss

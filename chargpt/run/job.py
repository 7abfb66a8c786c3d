"""A job of a sweep, in the process that runs it: what it differs by, and what becomes of it."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from chargpt.errors import Stopped, tell
from chargpt.jobs import Job, read_job, read_plan
from chargpt.run.folder import has_state
from chargpt.run.sweep import swept_in


def in_sweep() -> bool:
    """Whether this process runs a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def swept_values() -> dict[str, Any]:
    """The values by which this job of a sweep differs from the others; none outside of a sweep."""
    if not in_sweep():
        return {}
    hydra = HydraConfig.get()
    return swept_in(Path(hydra.sweep.dir), hydra.overrides.task)


def this_job(cfg: DictConfig) -> Job:
    """The job of a sweep that this process runs; finished if it was so before, and no other length is asked for now."""
    hydra, asked = HydraConfig.get(), OmegaConf.select(cfg, "trainer.max_steps")
    max_steps = asked if isinstance(asked, int) else 0  # what else it is will be refused
    folder, start = Path(hydra.runtime.output_dir), read_plan(Path(hydra.sweep.dir)).start
    before = read_job(folder)
    finished = before is not None and before.finished and before.max_steps == max_steps and has_state(folder)
    return Job(folder, hydra.job.num, swept_values(), start, max_steps, finished)


@contextlib.contextmanager
def recorded(job: Job, in_words: Callable[[Exception], str]) -> Iterator[None]:
    """Keeps in a job's folder what becomes of what is done inside; an error, in words."""
    job.write()
    try:
        yield
    except Stopped:
        replace(job, finished=False).write()
        raise
    except Exception as error:
        replace(job, error=in_words(error)).write()
        raise
    replace(job, finished=True).write()


def tell_of(job: Job, error: str | None = None) -> None:
    """A line on the terminal: which of the jobs this is, and how it went."""
    of = read_plan(Path(HydraConfig.get().sweep.dir)).jobs or "?"
    went = "not validated"
    if error is not None:
        went = f"failed: {error}"
    elif job.best:
        went = f"val loss {job.loss:.4f} at step {job.best.step:,}, {job.curve[-1].seconds:,.0f} s"
    before = ", finished before" if job.finished and error is None else ""
    tell(f"{job.number + 1} of {of}: {job.title or 'the defaults'}: {went}{before}")

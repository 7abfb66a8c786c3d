"""Several runs by one command (`--multirun`): what their folders are called, and what is written there for
`chargpt.jobs` to read."""

import glob
import hashlib
import math
import re
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from chargpt.errors import Stopped, tell
from chargpt.jobs import JOB, Job, Plan, read_job, read_plan
from chargpt.run.folder import has_state

ONE_DEVICE = "a sweep trains each job on one device: its other processes would each sweep again"


def in_sweep() -> bool:
    """Whether this process runs a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


class RecordSweep(Callback):
    """Writes `sweep.json` before the first job.

    Attributes:
        folder: that of the sweep which this process started.
    """

    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        hydra, folder = config.hydra, Path(config.hydra.sweep.dir)
        if config.resume != "allow" and any(folder.glob(f"*/{JOB}")):
            _refuse(f"{folder} holds a sweep already; resume=allow goes on with it")
        devices = config.trainer.get("devices")
        if (isinstance(devices, int) and devices > 1) or (OmegaConf.is_list(devices) and len(devices) > 1):
            _refuse(ONE_DEVICE)
        searched = [f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()]
        overrides = _parsed([*searched, *hydra.overrides.task])
        last = {each.key_or_group: each for each in overrides}
        swept = {key: each for key, each in last.items() if each.is_sweep_override()}
        jobs = hydra.sweeper.get("n_trials") or math.prod(map(_values_of, swept.values()))
        fixed = [str(each.input_line) for each in overrides if each.key_or_group not in (*swept, "resume")]
        hydras = [each for each in hydra.overrides.hydra if not each.startswith(("hydra.sweep.dir=", "hydra.mode="))]
        task = [each for each in hydra.overrides.task if not each.startswith("resume=")]
        plan = Plan(uuid.uuid4().hex, jobs, list(swept), fixed, [*hydras, *task])
        try:
            folder.mkdir(parents=True, exist_ok=True)
            plan.write(folder)
        except OSError:  # Hydra writes there next, and its error is told
            return
        RecordSweep.folder = folder
        tell(f"{jobs} job{'s' * (jobs != 1)} in {folder}; the lines of each are in its train.log")


def _refuse(why: str) -> NoReturn:
    tell(f"error: {why}")
    raise SystemExit(2)  # of an exception of a callback's Hydra makes a warning


def _parsed(overrides: Iterable[str]) -> list[Override]:
    return OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(list(overrides))


def _values_of(swept: Override) -> int:
    """How many values an override stands for."""
    return sum(1 for _ in swept.sweep_string_iterator()) if swept.is_discrete_sweep() else 1


def job_folder(sweep: str, number: int, overrides: list[str]) -> str:
    """What to call a job's folder: by its place, and the values of what is swept. One of an earlier start with the same
    values keeps its name, also where the places are others now."""
    folder = Path(sweep)
    name = folder_name(Job(folder, number, _swept(folder, overrides)).title.replace(", ", ","))
    start = read_plan(folder).start
    for file in sorted(folder.glob(f"*_{glob.escape(name)}/{JOB}")):
        before, place = read_job(file.parent), file.parent.name.removesuffix(f"_{name}")
        if place.isdecimal() and before is not None and (before.start != start or before.number == number):
            return file.parent.name
    return f"{number}_{name}"


def folder_name(text: str) -> str:
    """One folder's name: no separators in it, and no longer than file systems allow."""
    name = re.sub(r"[^\w.,=+-]", "_", text).strip(".") or "defaults"
    if len(name.encode()) <= 200:
        return name
    return f"{name.encode()[:190].decode(errors='ignore')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def swept_values() -> dict[str, Any]:
    """The values by which this job of a sweep differs from the others; none outside of a sweep."""
    if not in_sweep():
        return {}
    hydra = HydraConfig.get()
    return _swept(Path(hydra.sweep.dir), hydra.overrides.task)


def _swept(sweep: Path, overrides: Iterable[str]) -> dict[str, Any]:
    """By key; all where somebody's own `hydra.callbacks` took the place of ours."""
    swept = read_plan(sweep).swept
    values = {each.key_or_group: each for each in _parsed(overrides) if swept is None or each.key_or_group in swept}
    return {key: _plain(each) for key, each in values.items()}


def _plain(override: Override) -> Any:
    value = override.value()
    return value if isinstance(value, int | float | bool | None) else override.get_value_element_as_str()


def this_job(max_steps: int) -> Job:
    """The job of a sweep that this process runs; finished if it was so before, and no other length is asked for now."""
    hydra = HydraConfig.get()
    folder, start = Path(hydra.runtime.output_dir), read_plan(Path(hydra.sweep.dir)).start
    before = read_job(folder)
    finished = before is not None and before.finished and before.max_steps == max_steps and has_state(folder)
    return Job(folder, hydra.job.num, swept_values(), start, max_steps, finished)


@contextmanager
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

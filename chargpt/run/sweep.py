"""Several runs by one command (`--multirun`): what their folders are called, and what is written there for
`chargpt.jobs` to read."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from chargpt.commands import tell
from chargpt.errors import Stopped
from chargpt.files import write_whole
from chargpt.jobs import SWEEP, Job, read_job, read_record


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
        searched = [f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()]
        overrides = _parsed([*searched, *hydra.overrides.task])
        swept = {each.key_or_group: each for each in overrides if each.is_sweep_override()}
        jobs = hydra.sweeper.get("n_trials") or math.prod(map(_values_of, swept.values()))
        fixed = [each.input_line for each in overrides if each.key_or_group not in (*swept, "resume")]
        hydras = [each for each in hydra.overrides.hydra if not each.startswith(("hydra.sweep.dir=", "hydra.mode="))]
        task = [each for each in hydra.overrides.task if not each.startswith("resume=")]
        command = ["-m", "resume=allow", f"hydra.sweep.dir={hydra.sweep.dir}", *hydras, *task]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            record = {"swept": list(swept), "fixed": fixed, "jobs": jobs, "command": command}
            write_whole(folder / SWEEP, json.dumps(record, indent=1).encode())
        except OSError:  # Hydra writes there next, and its error is told
            return
        RecordSweep.folder = folder
        tell(f"{jobs} jobs in {folder}; the lines of each are in its train.log")


def _parsed(overrides: Iterable[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(overrides))


def _values_of(swept: Override) -> int:
    """How many values an override stands for."""
    return sum(1 for _ in swept.sweep_string_iterator()) if swept.is_discrete_sweep() else 1


def job_folder(sweep: str, overrides: list[str]) -> str:
    """What to call a job's folder: by the values of what is swept, and nothing else."""
    return folder_name(Job(Path(), 0, _swept(Path(sweep), overrides)).title.replace(", ", ","))


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
    swept = read_record(sweep).get("swept")
    values = {each.key_or_group: each for each in _parsed(overrides) if swept is None or each.key_or_group in swept}
    return {key: _plain(each) for key, each in values.items()}


def _plain(override: Override) -> Any:
    value = override.value()
    return value if isinstance(value, int | float | bool | None) else override.get_value_element_as_str()


def this_job() -> Job:
    """The job of a sweep that this process runs, as an earlier start of the sweep has left it."""
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    before = read_job(folder)
    return Job(folder, hydra.job.num, swept_values(), finished=before is not None and before.finished)


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
    of = read_record(Path(HydraConfig.get().sweep.dir)).get("jobs", "?")
    went = "not validated"
    if error is not None:
        went = f"failed: {error}"
    elif job.best:
        went = f"val loss {job.loss:.4f} at step {job.best.step:,}, {job.curve[-1].seconds:,.0f} s"
    before = ", finished before" if job.finished and error is None else ""
    tell(f"{job.number + 1} of {of}: {job.title or 'the defaults'}: {went}{before}")

"""What the folder of a sweep says: `sweep.json` how it was started, `job.json` in each run's folder how that went.

They are files, since some launchers run the jobs in processes, or on machines, of their own. They may come from a
stranger.
"""

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

from chargpt.command_line import quoted
from chargpt.errors import UserError
from chargpt.files import write
from chargpt.history import Point, read_losses

SWEEP, JOB = "sweep.json", "job.json"
LARGEST = 1 << 20  # bytes of either
MOST_VALUES, LONGEST = 100, 1000  # that a job differs by, and characters of one


@dataclass(frozen=True)
class Plan:
    """How a sweep was started, the last time.

    Attributes:
        start: stands for this start of it, in the records of the jobs, too.
        jobs: how many it has; 0 where that is not known.
        swept: the keys of what is swept; None where that is not known.
        fixed: the overrides that all jobs have alike.
        arguments: those of train.py, but for the folder.
    """

    start: str = ""
    jobs: int = 0
    swept: list[str] | None = None
    fixed: list[str] | None = None
    arguments: list[str] | None = None

    def write(self, sweep: Path) -> None:
        """Keep it in the sweep's folder."""
        write(sweep / SWEEP, json.dumps(asdict(self), indent=1).encode())


@dataclass(frozen=True)
class Job:
    """A run of a sweep.

    Attributes:
        number: its place, from 0 on.
        values: of what is swept.
        start: the start of the sweep that it was last part of.
        max_steps: the length of training that it was then asked for.
        finished: whether it came to its end.
        error: why it failed.
    """

    folder: Path
    number: int
    values: dict[str, Any]
    start: str = ""
    max_steps: int = 0
    finished: bool = False
    error: str | None = None

    def write(self) -> None:
        """Keep it in its folder."""
        about = {key: value for key, value in asdict(self).items() if key != "folder"}
        write(self.folder / JOB, json.dumps(about, indent=1).encode())

    @cached_property
    def curve(self) -> list[Point]:
        """Its validations."""
        return read_losses(self.folder)

    @property
    def best(self) -> Point | None:
        """The validation of the lowest loss."""
        return min(self.curve, key=lambda point: point.val_loss, default=None)

    @property
    def loss(self) -> float:
        """The lowest validation loss, in nats per id; infinite where there is none."""
        return self.best.val_loss if self.best else math.inf

    @property
    def speed(self) -> float:
        """Characters per second, the median of its validations; not a number where none was measured."""
        measured = [point.chars_per_second for point in self.curve if math.isfinite(point.chars_per_second)]
        return statistics.median(measured) if measured else math.nan

    @property
    def state(self) -> str:
        """How it ended, if that needs saying."""
        return f"failed: {self.error}" if self.error else "" if self.finished else "not finished"

    @property
    def title(self) -> str:
        """By what it differs from the others."""
        names = short_names(self.values)
        return ", ".join(f"{names[key]}={shown(value)}" for key, value in self.values.items())


@dataclass(frozen=True)
class Sweep:
    """What a sweep's folder holds.

    Attributes:
        plan: how it was started, the last time.
        jobs: those that began, the best first.
    """

    folder: Path
    plan: Plan
    jobs: list[Job]

    @cached_property
    def keys(self) -> list[str]:
        """What is swept."""
        return list(dict.fromkeys(key for job in self.jobs for key in job.values))

    @property
    def size(self) -> int:
        """How many jobs it has, those of earlier starts that are not among the present ones included."""
        return max(self.plan.jobs, len(self._of_this_start)) + len(self.jobs) - len(self._of_this_start)

    @property
    def unfinished(self) -> int:
        """How many jobs of the last start did not come to their end, or have not begun."""
        return max(0, self.plan.jobs - sum(not job.state for job in self._of_this_start))

    @cached_property
    def _of_this_start(self) -> list[Job]:
        return [job for job in self.jobs if job.start == self.plan.start]

    @property
    def finished(self) -> int:
        """How many of them came to their end."""
        return sum(not job.state for job in self.jobs)


def read_sweep(folder: Path) -> Sweep:
    """Read what the jobs of a sweep left; files that are damaged are left out.

    Raises:
        UserError: there is no sweep.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    jobs = [job for file in sorted(folder.glob(f"*/{JOB}")) if (job := read_job(file.parent))]
    if not jobs and not (folder / SWEEP).exists():
        raise UserError(f"{folder} is not the folder of a sweep: it has no {SWEEP}, and no jobs")
    return Sweep(folder, read_plan(folder), sorted(jobs, key=lambda job: (job.loss, job.number)))


def read_job(run: Path) -> Job | None:
    """The record of a run; None where there is none, or it is damaged."""
    about = _read(run / JOB)
    number, values, error = about.get("number"), about.get("values"), about.get("error")
    if not _is_count(number) or not isinstance(values, dict) or not isinstance(error, str | None):
        return None
    error = error and error[:LONGEST]
    plain = {key: value for key, value in values.items() if _is_plain(key) and _is_plain(value)}
    start, max_steps = str(about.get("start", "")), about.get("max_steps", 0)
    if len(plain) > MOST_VALUES or not _is_count(max_steps):
        return None
    return Job(run, number, plain, start, max_steps, about.get("finished") is True, error)


def read_plan(sweep: Path) -> Plan:
    """How a sweep was started; an empty plan where it does not say, or its file is damaged."""
    about = _read(sweep / SWEEP)
    jobs = about.get("jobs")
    lists = {key: about.get(key) for key in ("swept", "fixed", "arguments")}
    texts = {key: [str(each) for each in value] if isinstance(value, list) else None for key, value in lists.items()}
    return Plan(str(about.get("start", "")), jobs if _is_count(jobs) else 0, **texts)


def command_of_sweep(folder: Path) -> str:
    """The command line that resumes a sweep; empty if its folder does not have the arguments."""
    arguments = read_plan(folder).arguments
    if arguments is None:
        return ""
    return quoted(["python", "train.py", "-m", "resume=allow", f"hydra.sweep.dir={folder}", *arguments])


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and abs(value) < 2**63


def _read(file: Path) -> dict[str, Any]:
    try:
        if not file.is_file() or file.stat().st_size > LARGEST:  # to open a pipe would take for ever
            return {}
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_plain(value: Any) -> bool:
    if isinstance(value, int | float):
        return abs(value) < 2**63
    return value is None or (isinstance(value, str) and len(value) <= LONGEST)


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Each key without its group, where no other ends alike."""
    last = {key: key.rpartition(".")[2] for key in keys}
    often = Counter(last.values())
    return {key: name if often[name] == 1 else key for key, name in last.items()}


def shown(value: Any) -> str:
    """A value in a name or a table."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:.4g}" if isinstance(value, float) else f"{value[:60]}…" if len(str(value)) > 61 else str(value)

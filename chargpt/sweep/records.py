"""What a sweep's folder shows: how it was started (`sweep.json`) and, in the folder of each job, how that ended.

The jobs may run in other processes, or on other machines: they share nothing but the folder.
"""

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from chargpt.errors import UserError
from chargpt.files import write
from chargpt.history import JOB, SWEEP, Point, read_job, read_losses


@dataclass(frozen=True)
class Plan:
    """How a sweep was last started.

    Attributes:
        swept: the swept keys.
        jobs: how many jobs run.
        earlier: how many jobs of earlier starts do not run again.
        arguments: those of train.py, without the folder.
    """

    swept: list[str]
    jobs: int
    earlier: int
    arguments: list[str]

    def write(self, sweep: Path) -> None:
        """Keep it in the sweep's folder."""
        write(sweep / SWEEP, json.dumps(asdict(self), indent=1).encode())


@dataclass(frozen=True)
class Job:
    """A run of a sweep.

    Attributes:
        number: its place, from 0.
        values: of the swept keys.
        finished: it reached its length or stopped early; a time limit or a signal did not cut it off.
        error: why it failed.
    """

    folder: Path
    number: int
    values: dict[str, Any]
    finished: bool = False
    error: str | None = None

    def write(self) -> None:
        """Keep it in its folder."""
        record = {key: value for key, value in asdict(self).items() if key != "folder"}
        write(self.folder / JOB, json.dumps(record, indent=1).encode())

    @property
    def identity(self) -> str:
        """The swept values as text: 1, 1.0 and true differ, as they do for Lightning."""
        return json.dumps(self.values, sort_keys=True)

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
        """The lowest validation loss, in nats per id; infinite if there was no validation."""
        return self.best.val_loss if self.best else math.inf

    @property
    def speed(self) -> float | None:
        """Characters per second, the median of its validations; None if it was not measured."""
        measured = [point.chars_per_second for point in self.curve if math.isfinite(point.chars_per_second)]
        return statistics.median(measured) if measured else None

    @property
    def state(self) -> str:
        """How it ended."""
        return f"failed: {self.error}" if self.error else "finished" if self.finished else "not finished"

    @property
    def title(self) -> str:
        """Its swept values, for people."""
        names = short_names(self.values)
        return ", ".join(f"{names[key]}={shown(value)}" for key, value in self.values.items())


@dataclass(frozen=True)
class Sweep:
    """What a sweep's folder shows.

    Attributes:
        plan: how it was last started; None if the file is missing or damaged.
        jobs: those that have begun, the best first.
    """

    folder: Path
    plan: Plan | None
    jobs: list[Job]

    @property
    def keys(self) -> list[str]:
        """The swept keys."""
        return list(dict.fromkeys(key for job in self.jobs for key in job.values))

    @property
    def size(self) -> int:
        """How many jobs it has, with those that have not begun."""
        return max(len(self.jobs), self.plan.jobs + self.plan.earlier if self.plan else 0)

    @property
    def finished(self) -> int:
        """How many jobs have finished."""
        return sum(job.state == "finished" for job in self.jobs)


def read_sweep(folder: Path) -> Sweep:
    """Read a sweep's folder, without damaged files."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    jobs, plan = read_jobs(folder), read_plan(folder)
    if not jobs and plan is None:
        raise UserError(f"{folder} is not the folder of a sweep: it has no {SWEEP}, and no jobs")
    return Sweep(folder, plan, sorted(jobs, key=lambda job: (job.loss, job.number)))


def read_jobs(sweep: Path) -> list[Job]:
    """The jobs that have begun in a sweep's folder."""
    records = {file.parent: read_job(file.parent) for file in sorted(sweep.glob(f"*/{JOB}"))}
    return [Job(folder, **record) for folder, record in records.items() if record]


def read_plan(sweep: Path) -> Plan | None:
    """How a sweep was last started; None if the file is missing or damaged."""
    try:
        found = json.loads((sweep / SWEEP).read_bytes())
        lists = [[str(each) for each in found[key]] for key in ("swept", "arguments")]
        return Plan(lists[0], int(found["jobs"]), int(found["earlier"]), lists[1])
    except (OSError, ValueError, TypeError, LookupError, OverflowError, RecursionError):
        return None


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Each key without its group, unless another one ends alike."""
    last = {key: key.rpartition(".")[2] for key in keys}
    often = Counter(last.values())
    return {key: name if often[name] == 1 else key for key, name in last.items()}


def shown(value: Any) -> str:
    """A value in a name or a table."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 61 else f"{text[:60]}…"

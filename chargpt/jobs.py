"""What the folder of a sweep says: `sweep.json` which runs it has, `job.json` in each run's folder how it went.

They are files, since some launchers run the jobs in processes, or on machines, of their own. They may come from a
stranger.
"""

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from chargpt.curve import Point, read_curve
from chargpt.errors import UserError
from chargpt.files import write_whole

SWEEP, JOB = "sweep.json", "job.json"
LARGEST = 1 << 20  # bytes of either


@dataclass(frozen=True)
class Job:
    """A run of a sweep.

    Attributes:
        number: its place, from 0 on.
        values: of what is swept.
        finished: whether it came to its end.
        error: why it failed, the last time that it was started.
    """

    folder: Path
    number: int
    values: dict[str, Any]
    finished: bool = False
    error: str | None = None

    def write(self) -> None:
        """Keep it in its folder."""
        about = {key: value for key, value in asdict(self).items() if key != "folder"}
        write_whole(self.folder / JOB, json.dumps(about, indent=1).encode())

    @cached_property
    def curve(self) -> list[Point]:
        """Its validations."""
        return read_curve(self.folder)

    @property
    def best(self) -> Point | None:
        """The validation of the lowest loss."""
        return min(self.curve, key=lambda point: point.val_loss, default=None)

    @property
    def loss(self) -> float:
        """The lowest validation loss, in nats per character; infinite where there is none."""
        return self.best.val_loss if self.best else math.inf

    @property
    def speed(self) -> float:
        """Characters per second, the median of its validations; not a number where none was measured."""
        measured = [point.chars_per_second for point in self.curve if math.isfinite(point.chars_per_second)]
        return statistics.median(measured) if measured else math.nan

    @property
    def state(self) -> str:
        """How it ended, if that needs saying."""
        return f"failed: {self.error}" if self.error else "" if self.finished else "cut off"

    @property
    def title(self) -> str:
        """By what it differs from the others."""
        names = short_names(self.values)
        return ", ".join(f"{names[key]}={shown(value)}" for key, value in self.values.items())


@dataclass(frozen=True)
class Sweep:
    """What a sweep's folder holds.

    Attributes:
        expected: how many jobs it was started with, the last time; 0 where that is not known.
        command: the arguments of train.py that go on with it.
        jobs: those that began, the best first.
    """

    folder: Path
    expected: int
    command: list[str]
    jobs: list[Job]

    @property
    def keys(self) -> list[str]:
        """What is swept."""
        return list(dict.fromkeys(key for job in self.jobs for key in job.values))

    @property
    def size(self) -> int:
        """How many jobs it has; a search that went on has more than it was started with."""
        return max(self.expected, len(self.jobs))

    @property
    def finished(self) -> int:
        """How many of them came to their end."""
        return sum(not job.state for job in self.jobs)


def read_sweep(folder: Path) -> Sweep:
    """Read what the jobs of a sweep left; files that are damaged are left out.

    Raises:
        UserError: there is no sweep.
    """
    jobs = [job for file in sorted(folder.glob(f"*/{JOB}")) if (job := read_job(file.parent))]
    if not jobs and not (folder / SWEEP).exists():
        raise UserError(f"{folder} is not the folder of a sweep: it has no {SWEEP}, and no jobs")
    about = read_record(folder)
    expected, command = about.get("jobs"), about.get("command")
    return Sweep(
        folder,
        expected if type(expected) is int and abs(expected) < 2**63 else 0,
        [str(each) for each in command] if isinstance(command, list) else [],
        sorted(jobs, key=lambda job: (job.loss, job.number)),
    )


def read_job(run: Path) -> Job | None:
    """The record of a run; None where there is none, or it is damaged."""
    about = _read(run / JOB)
    number, values, error = about.get("number"), about.get("values"), about.get("error")
    if type(number) is not int or not isinstance(values, dict) or not isinstance(error, str | None):
        return None
    plain = {key: value for key, value in values.items() if _is_plain(value)}
    return Job(run, number, plain, about.get("finished") is True, error)


def read_record(sweep: Path) -> dict[str, Any]:
    """What was written before a sweep's first job; nothing where there is no such file, or it is damaged."""
    return _read(sweep / SWEEP)


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
        return abs(value) < 2**63 if isinstance(value, int) else math.isfinite(value)
    return value is None or isinstance(value, str)


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Each key without its group, where no other ends alike."""
    last = {key: key.rpartition(".")[2] for key in keys}
    return {key: name if list(last.values()).count(name) == 1 else key for key, name in last.items()}


def shown(value: Any) -> str:
    """A value in a name or a table."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)

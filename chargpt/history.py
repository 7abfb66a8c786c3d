"""The files that record a run: its losses in `losses.csv`, its text samples in `samples.jsonl`, and those of a sweep:
how it was started in `sweep.json` and, in each job's folder, its swept values and how it ended in `job.json`.

Lightning is not imported here, so that a comparison or a page starts quickly.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from chargpt.files import patiently, write
from chargpt.settings import make

Item = TypeVar("Item")
LOSSES, PICTURE, SAMPLES = "losses.csv", "loss.png", "samples.jsonl"
JOB, SWEEP = "job.json", "sweep.json"  # in the folder of a sweep's job, and in that of the sweep


class Point(NamedTuple):
    """The result of a validation. Before the first logged step, `train_loss` and `chars_per_second` are NaN."""

    step: int  # optimizer steps taken
    seconds: float  # of training so far, with validations, without interruptions
    train_loss: float  # of the last logged step, in nats per id
    val_loss: float  # in nats per id
    chars_per_second: float  # characters trained on by all devices together


_HEADER = ",".join(Point._fields) + "\n"


class Sample(NamedTuple):
    """A text that the model wrote after so many optimizer steps, prompt included."""

    step: int
    text: str


def read_losses(run: Path) -> list[Point]:
    """The validations of a run, without damaged rows."""
    points: list[Point] = []
    with suppress(OSError):
        for row in (run / LOSSES).read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, TypeError):
                step, *numbers = row.split(",")
                points.append(Point(int(step), *(float(number or "nan") for number in numbers)))
    return [point for point in points if math.isfinite(point.val_loss) and math.isfinite(point.seconds)]


def read_samples(run: Path) -> list[Sample]:
    """The text samples of a run, without damaged lines."""
    samples: list[Sample] = []
    with suppress(OSError):
        for line in (run / SAMPLES).read_bytes().splitlines():
            with suppress(ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
                found = json.loads(line)
                found["text"].encode()  # raises for a surrogate
                samples.append(Sample(int(found["step"]), found["text"]))
    return samples


@dataclass(frozen=True)
class Plan:
    """How a sweep was last started: the keys whose values tell jobs apart, how many jobs run, train.py's arguments, the
    overrides of single values, and the values of those keys that no job has an override for."""

    swept: list[str] = field(default_factory=list)
    jobs: int = 0
    arguments: list[str] = field(default_factory=list)
    fixed: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A run of a sweep.

    Attributes:
        number: its place, from 0.
        values: of the swept keys.
        finished: it reached its length or stopped early; a time limit or a signal did not cut it off.
        error: why it failed.
    """

    number: int
    values: dict[str, bool | int | float | str | None]
    finished: bool = False
    error: str | None = None

    @property
    def identity(self) -> str:
        """The swept values as text: 1, 1.0 and true differ, as they do for Lightning."""
        return json.dumps(self.values, sort_keys=True)

    @property
    def title(self) -> str:
        """Its swept values, for people."""
        names = short_names(self.values)
        return ", ".join(f"{names[key]}={shown(value)}" for key, value in self.values.items()) or "defaults"

    @property
    def state(self) -> str:
        """How it ended."""
        return f"failed: {self.error}" if self.error else "finished" if self.finished else "not finished"


def read_plan(sweep: Path) -> Plan:
    """The plan in a sweep's folder; empty if the file is missing or damaged."""
    return _read(sweep / SWEEP, Plan) or Plan()


def read_job(run: Path) -> Job | None:
    """The job in a run's folder; None for other runs, and if the file is damaged."""
    return _read(run / JOB, Job)


def _read(file: Path, kind: type[Item]) -> Item | None:
    with suppress(OSError, ValueError, TypeError, RecursionError):
        return make(file.name, kind, json.loads(file.read_bytes()))
    return None


def write_record(folder: Path, record: Plan | Job) -> None:
    """Write a sweep's plan or a job into its folder."""
    file = folder / (SWEEP if isinstance(record, Plan) else JOB)
    write(file, json.dumps(asdict(record), indent=1).encode())


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Each key without its group, unless another one ends alike."""
    last = {key: key.rpartition(".")[2] for key in keys}
    often = Counter(last.values())
    return {key: name if often[name] == 1 else key for key, name in last.items()}


def shown(value: Any) -> str:
    """A value in a name or a table."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return (value if isinstance(value, str) else json.dumps(value))[-60:]  # paths differ at their ends


def best_of(points: Sequence[Point]) -> Point | None:
    """The validation of the lowest loss; None if there was none."""
    return min(points, key=lambda point: point.val_loss, default=None)


def add_losses(run: Path, point: Point) -> None:
    """Append a validation to `losses.csv`."""
    with patiently(lambda: (run / LOSSES).open("a", encoding="utf-8", newline="\n")) as file:
        file.write(_row(point) if file.tell() else _HEADER + _row(point))


def add_sample(run: Path, sample: Sample) -> None:
    """Append a text sample to `samples.jsonl`."""
    with patiently(lambda: (run / SAMPLES).open("ab")) as file:
        file.write(_line(sample))


def drop_after(run: Path, step: int) -> None:
    """Drop the losses and samples after the step from which a run resumes."""
    if (run / LOSSES).exists():
        rows = [_row(point) for point in read_losses(run) if point.step <= step]
        write(run / LOSSES, "".join([_HEADER, *rows]).encode())
    if (run / SAMPLES).exists():
        write(run / SAMPLES, b"".join(_line(sample) for sample in read_samples(run) if sample.step <= step))


def _row(point: Point) -> str:
    """A row of `losses.csv`, in which a number that was not measured is blank."""
    return ",".join("" if math.isnan(number) else str(number) for number in point) + "\n"


def _line(sample: Sample) -> bytes:
    return json.dumps(sample._asdict()).encode() + b"\n"

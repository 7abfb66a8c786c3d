"""The files that record a run: its losses in `losses.csv`, its text samples in `samples.jsonl` and, for a job of a
sweep, its swept values and how it ended in `job.json`.

Lightning is not imported here, so that a comparison or a page starts quickly.
"""

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from chargpt.files import write

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
            with suppress(ValueError, TypeError, LookupError, AttributeError, OverflowError):
                found = json.loads(line)
                found["text"].encode()  # raises for a surrogate
                samples.append(Sample(int(found["step"]), found["text"]))
    return samples


def read_job(run: Path) -> dict[str, Any]:
    """The record of a sweep's job: `number`, swept `values`, `finished` and `error`; empty for other runs, and if the
    file is damaged."""
    with suppress(OSError, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
        found = json.loads((run / JOB).read_bytes())
        values = {key: value for key, value in found["values"].items() if isinstance(value, int | float | str | None)}
        error = None if found["error"] is None else str(found["error"])
        return {"number": int(found["number"]), "values": values, "finished": bool(found["finished"]), "error": error}
    return {}


def add_losses(run: Path, point: Point) -> None:
    """Append a validation to `losses.csv`."""
    with (run / LOSSES).open("a", encoding="utf-8", newline="\n") as file:
        file.write(_row(point) if file.tell() else _HEADER + _row(point))


def add_sample(run: Path, sample: Sample) -> None:
    """Append a text sample to `samples.jsonl`."""
    with (run / SAMPLES).open("ab") as file:
        file.write(_line(sample))


def drop_losses_after(run: Path, step: int) -> None:
    """Drop the validations after the step from which a run resumes."""
    if (run / LOSSES).exists():
        rows = [_row(point) for point in read_losses(run) if point.step <= step]
        write(run / LOSSES, "".join([_HEADER, *rows]).encode())


def drop_samples_after(run: Path, step: int) -> None:
    """Drop the text samples after the step from which a run resumes."""
    if (run / SAMPLES).exists():
        write(run / SAMPLES, b"".join(_line(sample) for sample in read_samples(run) if sample.step <= step))


def thinned(items: Sequence[Item], most: int) -> Sequence[Item]:
    """At most so many of the items, evenly spaced, with the first and the last."""
    if len(items) <= most:
        return items
    return [items[round(n * (len(items) - 1) / (most - 1))] for n in range(most)]


def _row(point: Point) -> str:
    """A row of `losses.csv`, in which a number that was not measured is blank."""
    return ",".join("" if math.isnan(number) else str(number) for number in point) + "\n"


def _line(sample: Sample) -> bytes:
    return json.dumps(sample._asdict()).encode() + b"\n"

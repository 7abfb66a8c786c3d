"""What a run's folder keeps of its course: the losses in `losses.csv`, the text samples in `samples.jsonl`; if it is a
job of a sweep, its swept values and how it ended in `job.json`.

Lightning is not imported here, so that a comparison or a page starts quickly.
"""

import csv
import io
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
    """The result of a validation. Before the first logged step, `train_loss` and `chars_per_second` are NaN.

    Attributes:
        step: optimizer steps taken.
        seconds: of training so far, with validations, without interruptions.
        train_loss: of the last logged step, in nats per id.
        val_loss: in nats per id.
        chars_per_second: characters trained on by all devices together.
    """

    step: int
    seconds: float
    train_loss: float
    val_loss: float
    chars_per_second: float


class Sample(NamedTuple):
    """A text that the model wrote after so many optimizer steps, prompt included."""

    step: int
    text: str


def read_losses(run: Path) -> list[Point]:
    """The validations of a run, without damaged rows."""
    points: list[Point] = []
    with suppress(OSError, csv.Error):
        for row in csv.reader((run / LOSSES).read_text(encoding="utf-8", errors="replace").splitlines()):
            with suppress(ValueError, TypeError):
                step, *numbers = row
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
    is_new = not (run / LOSSES).exists()
    with (run / LOSSES).open("a", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([Point._fields, _row(point)] if is_new else [_row(point)])


def add_sample(run: Path, sample: Sample) -> None:
    """Append a text sample to `samples.jsonl`."""
    with (run / SAMPLES).open("ab") as file:
        file.write(_line(sample))


def drop_losses_after(run: Path, step: int) -> None:
    """Drop the validations after the step from which a run resumes."""
    if (run / LOSSES).exists():
        rows = io.StringIO(newline="")
        csv.writer(rows).writerows([Point._fields, *(_row(each) for each in read_losses(run) if each.step <= step)])
        write(run / LOSSES, rows.getvalue().encode())


def drop_samples_after(run: Path, step: int) -> None:
    """Drop the text samples after the step from which a run resumes."""
    if (run / SAMPLES).exists():
        write(run / SAMPLES, b"".join(_line(sample) for sample in read_samples(run) if sample.step <= step))


def thinned(items: Sequence[Item], most: int) -> Sequence[Item]:
    """At most so many of the items, evenly spaced, with the first and the last."""
    if len(items) <= most:
        return items
    return [items[round(n * (len(items) - 1) / (most - 1))] for n in range(most)]


def _row(point: Point) -> list[float | str]:
    """A row of `losses.csv`, in which a number that was not measured is blank."""
    return ["" if math.isnan(number) else number for number in point]


def _line(sample: Sample) -> bytes:
    return json.dumps(sample._asdict()).encode() + b"\n"

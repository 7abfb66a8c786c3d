"""The course of a run: its losses at each validation, in `losses.csv` in its folder."""

import csv
import io
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from chargpt.files import write

Item = TypeVar("Item")
FILE, PICTURE = "losses.csv", "loss.png"


class Point(NamedTuple):
    """What a validation came to.

    Attributes:
        step: optimizer steps taken.
        seconds: of training so far, validations included and interruptions not.
        train_loss: of the last step that was logged, in nats per id.
        val_loss: in nats per id.
        chars_per_second: characters trained on, of all devices together.
    """

    step: int
    seconds: float
    train_loss: float
    val_loss: float
    chars_per_second: float


def read_curve(run: Path) -> list[Point]:
    """The points of a run's curve, without damaged rows; none if there is no such file."""
    points: list[Point] = []
    with suppress(OSError, csv.Error):
        for row in csv.reader((run / FILE).read_text(encoding="utf-8", errors="replace").splitlines()):
            with suppress(ValueError, TypeError):
                step, *numbers = row
                points.append(Point(int(step), *map(float, numbers)))
    return [point for point in points if math.isfinite(point.val_loss) and math.isfinite(point.seconds)]


def thinned(items: Sequence[Item], most: int) -> Sequence[Item]:
    """At most so many of them, evenly, the first and the last included."""
    if len(items) <= most:
        return items
    return [items[round(n * (len(items) - 1) / (most - 1))] for n in range(most)]


def append(run: Path, point: Point) -> None:
    """Add a point to a run's curve."""
    new = not (run / FILE).exists()
    with (run / FILE).open("a", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        if new:
            rows.writerow(Point._fields)
        rows.writerow(point)


def keep_until(run: Path, step: int) -> None:
    """Drop the points after a step, from where a run resumes."""
    if (run / FILE).exists():
        rows = io.StringIO(newline="")
        csv.writer(rows).writerows([Point._fields, *(point for point in read_curve(run) if point.step <= step)])
        write(run / FILE, rows.getvalue().encode())

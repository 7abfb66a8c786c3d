"""The course of a run: its losses at each validation, in a file of its folder."""

import csv
import io
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from chargpt.files import lines_of, write_whole
from chargpt.settings import MOST_STEPS

Item = TypeVar("Item")
FILE, PICTURE = "losses.csv", "loss.png"
MOST_POINTS = 1_000_000
LONGEST_LINE = 1_000  # bytes
LARGEST = 1e15  # of a number in it; pictures and means have their limits


class Point(NamedTuple):
    """What a validation came to.

    Attributes:
        step: optimizer steps taken.
        seconds: since training began, validations included and interruptions not.
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
    """The points of a run's curve; none where there is no such file. A row that is damaged is left out."""
    points: list[Point] = []
    rows = (line.decode(errors="replace") for line in lines_of(run / FILE, MOST_POINTS, LONGEST_LINE))
    with suppress(csv.Error):
        for row in csv.reader(rows):
            with suppress(ValueError, TypeError):
                step, *numbers = row
                points.append(Point(int(step), *map(float, numbers)))
    return [point for point in points if _is_sensible(point)]


def _is_sensible(point: Point) -> bool:
    step, seconds, train_loss, val_loss, speed = point
    maybe_missing = all(math.isnan(each) or abs(each) < LARGEST for each in (train_loss, speed))
    return 0 <= step < MOST_STEPS and 0 <= seconds < LARGEST and 0 <= val_loss < LARGEST and maybe_missing


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


def keep_until(run: Path, step: int) -> list[Point]:
    """Drop the points after a step, from where a run goes on; returns those that stay."""
    points = [point for point in read_curve(run) if point.step <= step]
    if (run / FILE).exists():
        rows = io.StringIO(newline="")
        csv.writer(rows).writerows([Point._fields, *points])
        write_whole(run / FILE, rows.getvalue().encode())
    return points

"""Compare the runs of a sweep: `python -m chargpt.compare outputs/sweeps/...`."""

import argparse
import csv
import io
import json
import math
import os
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chargpt import commands
from chargpt.commands import Parser, file_name, open_output
from chargpt.curve import Point, read_curve
from chargpt.errors import UserError, first_line, printable
from chargpt.files import status
from chargpt.tables import table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SWEEP, JOB = "sweep.json", "job.json"  # in a sweep's folder, and in each job's
LARGEST = 1 << 20  # bytes of either
SEEDS = ("seed", "data.seed")
MOST_CURVES = 15  # that have a line in the legend


@dataclass(frozen=True)
class Job:
    """A run of a sweep.

    Attributes:
        folder: relative to the sweep's.
        values: of what is swept.
        finished: whether it came to its end.
        error: why it failed.
        curve: its validations.
    """

    folder: Path
    number: int
    values: dict[str, Any]
    finished: bool
    error: str | None
    curve: list[Point]

    @property
    def best(self) -> Point | None:
        """The validation of the lowest loss."""
        return min(self.curve, key=lambda point: point.val_loss, default=None)

    @property
    def loss(self) -> float:
        """The lowest validation loss, in nats per character; infinite where there is none."""
        return self.best.val_loss if self.best else math.inf

    @property
    def state(self) -> str:
        """How it ended, if that needs saying."""
        return f"failed: {self.error}" if self.error else "" if self.finished else "cut off"


@dataclass(frozen=True)
class Sweep:
    """What a sweep's folder holds.

    Attributes:
        expected: how many jobs it has; None where that is not known.
        command: the arguments of train.py that go on with it.
        jobs: those that began, the best first.
    """

    folder: Path
    expected: int | None
    command: list[str]
    jobs: list[Job]

    @property
    def keys(self) -> list[str]:
        """What is swept."""
        return list(dict.fromkeys(key for job in self.jobs for key in job.values))

    @property
    def finished(self) -> int:
        """How many jobs came to their end."""
        return sum(not job.state for job in self.jobs)

    @property
    def is_whole(self) -> bool:
        """Whether all jobs did."""
        return self.finished == len(self.jobs) and self.finished >= (self.expected or 0)


def read_sweep(folder: Path) -> Sweep:
    """Read what the jobs of a sweep left; files that are damaged are left out.

    Raises:
        UserError: there is no sweep.
    """
    jobs = []
    for file in sorted(folder.glob(f"*/{JOB}")):
        about = _read(file)
        try:
            values = {str(key): value for key, value in about["values"].items() if _is_plain(value)}
            error, number = about["error"], about["number"]
            if type(number) is not int or not isinstance(error, str | None):
                continue
            run = file.parent
            jobs.append(Job(run.relative_to(folder), number, values, about["finished"] is True, error, read_curve(run)))
        except (KeyError, TypeError, AttributeError):
            continue
    if not jobs and not (folder / SWEEP).exists():
        raise UserError(f"{folder} is not the folder of a sweep: it has no {SWEEP}, and no jobs")
    about = _read(folder / SWEEP)
    about = about if isinstance(about, dict) else {}
    expected, command = about.get("jobs"), about.get("command")
    return Sweep(
        folder,
        expected if type(expected) is int else None,
        [str(each) for each in command] if isinstance(command, list) else [],
        sorted(jobs, key=lambda job: (job.loss, job.number)),
    )


def _read(file: Path) -> Any:
    """What a small JSON file says; None where there is none."""
    try:
        found = status(file)
        if found is None or found.st_size > LARGEST or not file.is_file():
            return None
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError, UserError):
        return None


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


def report(sweep: Sweep) -> str:
    """The tables of a sweep, and what to do next."""
    parts = [f"{sweep.folder}: {sweep.finished} of {sweep.expected or len(sweep.jobs)} jobs finished"]
    if sweep.jobs:
        parts.append(_table_of_jobs(sweep))
    if seeds := _table_over_seeds(sweep):
        parts.append(seeds)
    if sweep.jobs and sweep.jobs[0].best:
        parts.append(
            f"Sample the best: python sample.py --ckpt {shlex.quote(str(sweep.folder / sweep.jobs[0].folder))}"
        )
    if sweep.command and not sweep.is_whole:
        parts.append(f"To go on: {shlex.join(['python', 'train.py', *sweep.command])}")
    return "\n\n".join(parts)


def _table_of_jobs(sweep: Sweep) -> str:
    names = short_names(sweep.keys)
    head = [*names.values(), "best", "at step", "last", "chars/s", "time", "folder"]
    rows = []
    for job in sweep.jobs:
        cells = [shown(job.values[key]) if key in job.values else "" for key in names]
        if job.best:
            last, speed = job.curve[-1], statistics.median(point.chars_per_second for point in job.curve)
            time = f"{last.seconds:,.0f} s"
            cells += [f"{job.loss:.4f}", f"{job.best.step:,}", f"{last.val_loss:.4f}", f"{speed:,.0f}", time]
        else:
            cells += [""] * 5
        rows.append([*cells, f"{job.folder}{f'  ({job.state})' if job.state else ''}"])
    return table(head, rows)


def _table_over_seeds(sweep: Sweep) -> str:
    """The mean and the spread of the best losses where only seeds differ; nothing where none are swept."""
    groups = _groups(sweep)
    if all(len(jobs) < 2 for jobs in groups.values()) or not any(key in SEEDS for key in sweep.keys):
        return ""
    keys = [key for key in sweep.keys if key not in SEEDS]
    rows = []
    for values, jobs in sorted(groups.items(), key=lambda group: statistics.mean(job.loss for job in group[1])):
        losses = [job.loss for job in jobs]
        spread = f"{statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
        rows.append([*values, f"{statistics.mean(losses):.4f}", spread, f"{min(losses):.4f} to {max(losses):.4f}"])
        rows[-1].append(f"{len(jobs)}")
    names = short_names(keys)
    return "Over seeds:\n" + table([*names.values(), "mean best", "deviation", "range", "jobs"], rows)


def _groups(sweep: Sweep) -> dict[tuple[str, ...], list[Job]]:
    """The jobs that have a loss, by the values of all that is swept but seeds."""
    keys = [key for key in sweep.keys if key not in SEEDS]
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in sweep.jobs:
        if job.best:
            groups.setdefault(tuple(shown(job.values.get(key, "")) for key in keys), []).append(job)
    return groups


def as_csv(sweep: Sweep) -> str:
    """The table of all jobs, with values and losses in full."""
    out = io.StringIO()
    rows = csv.writer(out)
    rows.writerow(
        [*sweep.keys, "best_val_loss", "best_step", "last_val_loss", "chars_per_second", "seconds", "state", "folder"]
    )
    for job in sweep.jobs:
        numbers: Sequence[object] = [""] * 5
        if job.best:
            last, speed = job.curve[-1], statistics.median(point.chars_per_second for point in job.curve)
            numbers = [job.loss, job.best.step, last.val_loss, speed, last.seconds]
        state = job.state or "finished"
        rows.writerow([*(job.values.get(key, "") for key in sweep.keys), *numbers, state, job.folder])
    return out.getvalue()


def draw(sweep: Sweep) -> "Figure":
    """A picture of a sweep: the best loss over each swept value, and all curves."""
    from matplotlib.figure import Figure

    names = short_names(sweep.keys)
    keys = [key for key in sweep.keys if key not in SEEDS] or sweep.keys[:1]
    jobs = [job for job in sweep.jobs if job.best]
    figure = Figure(figsize=(4 * (len(keys) + 2), 4.5), layout="constrained")
    ratios = [*([1] * len(keys)), 2]
    *panels, curves = figure.subplots(1, len(keys) + 1, width_ratios=ratios, squeeze=False)[0]
    for panel, key in zip(panels, keys, strict=True):
        _draw_values(panel, names[key], [(job.values.get(key), job.loss) for job in jobs])
    colours = [f"C{n % 10}" for n in range(len(jobs))]
    for n, (job, colour) in enumerate(zip(jobs, colours, strict=True)):
        label = ", ".join(f"{names[key]}={shown(value)}" for key, value in job.values.items()) or str(job.folder)
        steps, losses = [point.step for point in job.curve], [point.val_loss for point in job.curve]
        options = {"color": colour, "marker": ".", "linewidth": 2.5 if n == 0 else 1}
        curves.plot(steps, losses, label=_in_picture(label) if n < MOST_CURVES else None, **options)
    curves.set(title="all runs, the best first", xlabel="step", ylabel="validation loss (nats per character)")
    if jobs:
        figure.legend(loc="outside right upper", fontsize="x-small")
    for panel in (*panels, curves):
        panel.grid(alpha=0.3)
    return figure


def _draw_values(panel: Any, name: str, found: list[tuple[Any, float]]) -> None:
    """The best losses over the values of one key, and the median of each value's."""
    values = list(dict.fromkeys(value for value, _ in found))
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    values.sort(key=None if numbers else str)
    places = {value: float(value) if numbers else float(n) for n, value in enumerate(values)}
    panel.plot([places[value] for value, _ in found], [loss for _, loss in found], "o", alpha=0.6)
    medians = [statistics.median(loss for each, loss in found if each == value) for value in values]
    panel.plot([places[value] for value in values], medians, "-", alpha=0.6)
    if numbers and values and min(values) > 0 and max(values) / min(values) > 5:
        panel.set_xscale("log")
    if len(values) <= 6:
        panel.set_xticks([places[value] for value in values], [_in_picture(shown(value)) for value in values])
        panel.minorticks_off()
    panel.set(title=_in_picture(name), xlabel=_in_picture(name), ylabel="best validation loss")


def _in_picture(text: str) -> str:
    """A text for a picture, in which $ begins no formula."""
    return printable(text).replace("$", r"\$")[:80]


def save(sweep: Sweep) -> None:
    """Write `table.csv` and `sweep.png` into the sweep's folder.

    Raises:
        UserError: they cannot be written.
    """
    picture = io.BytesIO()
    draw(sweep).savefig(picture, format="png", dpi=120)
    for name, content in (("table.csv", as_csv(sweep).encode(errors="replace")), ("sweep.png", picture.getvalue())):
        try:
            # Under a new name first: what stands in the place of the file may be a link.
            with tempfile.NamedTemporaryFile(dir=sweep.folder, prefix=f".{name}.", suffix=".tmp", delete=False) as half:
                half.write(content)
            os.chmod(half.name, 0o666 & ~_umask())
            os.replace(half.name, sweep.folder / name)
        except OSError as error:
            for left in sweep.folder.glob(f".{name}.*.tmp"):
                left.unlink()
            raise UserError(f"cannot write {sweep.folder / name}: {error.strerror}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def find_sweep(outputs: Path = Path("outputs")) -> Path:
    """The newest sweep.

    Raises:
        UserError: there is none.
    """
    found = [file for file in outputs.rglob(SWEEP) if file.is_file()]
    if not found:
        raise UserError(f"no sweep in {outputs}/: python train.py -m seed=1,2 trains one")
    return max(found, key=lambda file: file.stat().st_mtime).parent


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        Its exit status, as `chargpt.commands.run` has it.
    """
    return commands.run(build_parser(), compare, argv, "compare fewer runs at once")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m chargpt.compare",
        description="Compare the runs of a sweep, finished or not: a table, table.csv and sweep.png in its folder.",
    )
    parser.add_argument("sweep", type=file_name, nargs="?", metavar="SWEEP", help="its folder (default: the newest)")
    return parser


def compare(arguments: argparse.Namespace) -> None:
    """Print the report of a sweep, and write its files."""
    folder = Path(arguments.sweep) if arguments.sweep is not None else find_sweep()
    try:
        sweep = read_sweep(folder)
        save(sweep)
    except OSError as error:
        raise UserError(f"cannot read {folder}: {first_line(error)}") from error
    with open_output(None) as out:
        out.write(printable(report(sweep)) + "\n")


if __name__ == "__main__":
    sys.exit(main())

"""Compare the runs of a sweep: `python -m chargpt.compare outputs/sweeps/...`.

A sweep's folder shows how it was started (`sweep.json`) and, in the folder of each job, how that ended. The jobs may
run in other processes, or on other machines: they share nothing but the folder.
"""

import argparse
import csv
import io
import json
import math
import re
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chargpt.command_line import Parser, file_name, open_output, quoted, table
from chargpt.errors import UserError, escape
from chargpt.files import decoration, find, write
from chargpt.history import JOB, SWEEP, Point, read_job, read_losses
from chargpt.pictures import png
from chargpt.settings import make

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEEDS = ("seed", "data.seed")
MEASURED = {  # columns of table.csv: their heads and formats in the table
    "best_val_loss": ("best", "{:.4f}"),
    "best_step": ("at step", "{:,}"),
    "last_val_loss": ("last", "{:.4f}"),
    "chars_per_second": ("chars/s", "{:,.0f}"),
    "seconds": ("time", "{:,.0f} s"),
}


@dataclass(frozen=True)
class Plan:
    """How a sweep was last started: the swept keys, how many jobs run, and the arguments of train.py."""

    swept: list[str] = field(default_factory=list)
    jobs: int = 0
    arguments: list[str] = field(default_factory=list)

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

    @property
    def title(self) -> str:
        """Its swept values, for people."""
        names = short_names(self.values)
        return ", ".join(f"{names[key]}={shown(value)}" for key, value in self.values.items()) or "defaults"

    @property
    def state(self) -> str:
        """How it ended."""
        return f"failed: {self.error}" if self.error else "finished" if self.finished else "not finished"

    @cached_property
    def curve(self) -> list[Point]:
        """Its validations."""
        return read_losses(self.folder)

    @property
    def loss(self) -> float:
        """The lowest validation loss, in nats per id; infinite if there was no validation."""
        return min((point.val_loss for point in self.curve), default=math.inf)

    @property
    def measured(self) -> list[float | str]:
        """A value for each of MEASURED; blank if there was no validation."""
        if not self.curve:
            return [""] * len(MEASURED)
        best, last = min(self.curve, key=lambda point: point.val_loss), self.curve[-1]
        speeds = [point.chars_per_second for point in self.curve if math.isfinite(point.chars_per_second)]
        return [best.val_loss, best.step, last.val_loss, statistics.median(speeds) if speeds else "", last.seconds]


@dataclass(frozen=True)
class Sweep:
    """What a sweep's folder shows; the jobs are those that have begun, the best first."""

    folder: Path
    plan: Plan
    jobs: list[Job]

    @property
    def keys(self) -> list[str]:
        """The swept keys."""
        return list(dict.fromkeys(key for job in self.jobs for key in job.values))

    @property
    def size(self) -> int:
        """How many jobs it has, with those that have not begun."""
        return max(len(self.jobs), self.plan.jobs)

    @property
    def finished(self) -> int:
        """How many jobs have finished."""
        return sum(job.state == "finished" for job in self.jobs)


def read_sweep(folder: Path) -> Sweep:
    """Read a sweep's folder; damaged files are ignored."""
    records = {file.parent: read_job(file.parent) for file in sorted(folder.glob(f"*/{JOB}"))}
    jobs = [Job(each, **record) for each, record in records.items() if record]
    return Sweep(folder, read_plan(folder), sorted(jobs, key=lambda job: (job.loss, job.number)))


def read_plan(sweep: Path) -> Plan:
    """How a sweep was last started; empty if the file is missing or damaged."""
    try:
        return make(SWEEP, Plan, json.loads((sweep / SWEEP).read_bytes()))
    except (OSError, ValueError, RecursionError):
        return Plan()


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Each key without its group, unless another one ends alike."""
    last = {key: key.rpartition(".")[2] for key in keys}
    often = Counter(last.values())
    return {key: name if often[name] == 1 else key for key, name in last.items()}


def shown(value: Any) -> str:
    """A value in a name or a table."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return (value if isinstance(value, str) else json.dumps(value))[:60]


def report(sweep: Sweep) -> str:
    """The tables of a sweep, and what to do next."""
    parts = [f"{sweep.folder}: {sweep.finished} of {sweep.size} jobs finished"]
    if sweep.jobs:
        parts.append(_table_of_jobs(sweep))
    if seeds := _table_over_seeds(sweep):
        parts.append(seeds)
    if sweep.jobs and sweep.jobs[0].curve:
        parts.append(f"Sample the best: {quoted(['python', 'sample.py', '--ckpt', str(sweep.jobs[0].folder)])}")
    if sweep.plan.jobs and sweep.finished < sweep.size:
        words = sweep.plan.arguments
        flags = next((n for n, word in enumerate(words) if re.match(r"[^-].*=", word)), len(words))  # they come first
        words = [*words[:flags], "resume=allow", f"hydra.sweep.dir={sweep.folder}", *words[flags:]]
        parts.append(f"To resume: {quoted(['python', 'train.py', '-m', *words])}")
    return "\n\n".join(parts)


def rows(sweep: Sweep) -> list[list[Any]]:
    """Swept values, MEASURED, folder and state of each job."""
    values = [[job.values.get(key, "") for key in sweep.keys] for job in sweep.jobs]
    return [[*first, *job.measured, job.folder.name, job.state] for first, job in zip(values, sweep.jobs, strict=True)]


def _table_of_jobs(sweep: Sweep) -> str:
    head = [*short_names(sweep.keys).values(), *(head for head, _ in MEASURED.values()), "folder", "state"]
    formats: list[Any] = [*[shown] * len(sweep.keys), *(form.format for _, form in MEASURED.values()), str, str]
    lines = [[form(cell) if cell != "" else "" for form, cell in zip(formats, row, strict=True)] for row in rows(sweep)]
    return table(head, lines)


def _table_over_seeds(sweep: Sweep) -> str:
    """The mean and the spread of the best losses of finished jobs that differ by seeds only, if any."""
    keys = [key for key in sweep.keys if key not in SEEDS]
    groups: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for job in sweep.jobs:
        if job.curve and job.state == "finished":
            groups[tuple(shown(job.values.get(key, "")) for key in keys)].append(job.loss)
    if keys == sweep.keys or all(len(losses) < 2 for losses in groups.values()):
        return ""
    lines = []
    for values, losses in sorted(groups.items(), key=lambda group: statistics.mean(group[1])):
        spread = f"{statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
        extent = f"{min(losses):.4f} to {max(losses):.4f}"
        lines.append([*values, f"{statistics.mean(losses):.4f}", spread, extent, f"{len(losses)}"])
    return f"Over seeds:\n{table([*short_names(keys).values(), 'mean best', 'deviation', 'range', 'jobs'], lines)}"


def draw(sweep: Sweep) -> "Figure":
    """A picture of a sweep: the best loss over each swept value, and all curves."""
    from matplotlib.figure import Figure

    keys = [key for key in sweep.keys if key not in SEEDS] or sweep.keys[:1]
    jobs = [job for job in sweep.jobs if job.curve]
    figure = Figure(figsize=(4 * (len(keys) + 2), 4.5), layout="constrained")
    ratios = [*([1] * len(keys)), 2]
    *panels, curves = figure.subplots(1, len(keys) + 1, width_ratios=ratios, squeeze=False)[0]
    for panel, key in zip(panels, keys, strict=True):
        values: list[Any] = [job.values.get(key) for job in jobs]
        numbers = all(type(value) in (int, float) for value in values)
        places = [float(value) if numbers else _plain(shown(value)) for value in values]
        panel.plot(places, [job.loss for job in jobs], "o", alpha=0.6)
        if numbers and values and 0 < 5 * min(values) < max(values):
            panel.set_xscale("log")
        panel.set(xlabel=_plain(key), ylabel="best validation loss")
    for n, job in enumerate(jobs):
        label = _plain(job.title) if n < 15 else None  # more would fill the picture
        curves.plot([point.step for point in job.curve], [point.val_loss for point in job.curve], ".-", label=label)
    curves.set(title="all runs, the best first", xlabel="step", ylabel="validation loss (nats)")
    if jobs:
        figure.legend(loc="outside right upper", fontsize="x-small")
    return figure


def _plain(text: str) -> str:
    """A text for a picture, in which $ begins no formula."""
    return text.replace("$", r"\$")[:80]


def save(sweep: Sweep) -> None:
    """Write `table.csv` and `sweep.png` into the sweep's folder."""
    out = io.StringIO()
    csv.writer(out).writerows([[*sweep.keys, *MEASURED, "folder", "state"], *rows(sweep)])
    with decoration("table.csv"):
        write(sweep.folder / "table.csv", out.getvalue().encode(errors="replace"))
    with decoration("sweep.png"):
        write(sweep.folder / "sweep.png", png(draw(sweep)))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    parser = Parser(
        prog="python -m chargpt.compare",
        description="Compare the runs of a sweep, finished or not: a table, table.csv and sweep.png in its folder.",
    )
    parser.add_argument("sweep", type=file_name, nargs="?", metavar="SWEEP", help="its folder (default: the newest)")
    return parser.run(compare, argv)


def compare(arguments: argparse.Namespace) -> None:
    """Print the report of a sweep, and write its files."""
    started = sorted(find("outputs", SWEEP), key=lambda file: file.stat().st_mtime)
    if not arguments.sweep and not started:
        raise UserError("no sweep in outputs/: python train.py -m seed=1,2 trains one")
    sweep = read_sweep(Path(arguments.sweep or started[-1].parent))
    if not sweep.size:
        raise UserError(f"{sweep.folder} is not the folder of a sweep: it has no {SWEEP}, and no jobs")
    with open_output(None) as out:
        out.write(f"{escape(report(sweep))}\n")
    save(sweep)


if __name__ == "__main__":
    sys.exit(main())

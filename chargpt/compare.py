"""Compare the runs of a sweep: `python -m chargpt.compare outputs/sweeps/...`.

A sweep's folder shows how it was started (`sweep.json`) and, in the folder of each job, how that ended. The jobs may
run in other processes, or on other machines: they share nothing but the folder.
"""

import argparse
import csv
import io
import json
import math
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from chargpt.command_line import Parser, file_name, open_output, quoted, table
from chargpt.errors import UserError, escape
from chargpt.files import best_effort, find, write, write_figure
from chargpt.history import JOB, SWEEP, Job, Plan, Point, best_of, read_job, read_losses, read_plan, short_names, shown

SEEDS = ("seed", "data.seed")
MEASURED = {  # columns of table.csv: their heads and formats in the table
    "best_val_loss": ("best", "{:.4f}"),
    "best_step": ("at step", "{:,}"),
    "last_val_loss": ("last", "{:.4f}"),
    "chars_per_second": ("chars/s", "{:,.0f}"),
    "seconds": ("time", "{:,.0f} s"),
}


class Result(NamedTuple):
    """A job of a sweep, its folder and its validations. Its lowest loss is infinite if there was no validation."""

    folder: Path
    job: Job
    curve: list[Point]
    loss: float


class Sweep(NamedTuple):
    """What a sweep's folder shows; the results are those of jobs that have begun, the best first."""

    folder: Path
    plan: Plan
    results: list[Result]

    @property
    def keys(self) -> list[str]:
        """The swept keys."""
        return list(dict.fromkeys(key for each in self.results for key in each.job.values))

    @property
    def size(self) -> int:
        """How many jobs it has, with those that have not begun."""
        return max(len(self.results), self.plan.jobs)

    @property
    def finished(self) -> int:
        """How many jobs have finished."""
        return sum(each.job.state == "finished" for each in self.results)


def read_sweep(folder: Path) -> Sweep:
    """Read a sweep's folder; damaged files are ignored."""
    results: dict[str, Result] = {}
    for run in sorted(file.parent for file in folder.glob(f"*/{JOB}")):
        if (job := read_job(run)) and job.identity not in results:  # else a copy of a job's folder
            curve = read_losses(run)
            best = best_of(curve)
            results[job.identity] = Result(run, job, curve, best.val_loss if best else math.inf)
    return Sweep(folder, read_plan(folder), sorted(results.values(), key=lambda each: (each.loss, each.job.number)))


def report(sweep: Sweep) -> str:
    """The tables of a sweep, and what to do next."""
    head = f"{sweep.folder}: {sweep.finished} of {sweep.size} jobs finished"
    parts = [head, _table_of_jobs(sweep) if sweep.results else "", _table_over_seeds(sweep)]
    if sweep.results and sweep.results[0].curve:
        parts.append(f"Sample the best: {quoted(['python', 'sample.py', '--ckpt', str(sweep.results[0].folder)])}")
    if sweep.plan.jobs and sweep.finished < sweep.size:
        command = ["python", "train.py", "-m", "resume=allow", f"hydra.sweep.dir={sweep.folder}", *sweep.plan.arguments]
        parts.append(f"To resume: {quoted(command)}")
    return "\n\n".join(filter(None, parts))


def rows(sweep: Sweep) -> list[list[Any]]:
    """Swept values, MEASURED (blank without a validation), folder and state of each job."""
    found = []
    for folder, job, curve, loss in sweep.results:
        speeds = [point.chars_per_second for point in curve if math.isfinite(point.chars_per_second)]
        measured: list[Any] = [""] * len(MEASURED)
        if best := best_of(curve):
            speed = statistics.median(speeds) if speeds else ""
            measured = [loss, best.step, curve[-1].val_loss, speed, curve[-1].seconds]
        found.append([*(job.values.get(key, "") for key in sweep.keys), *measured, folder.name, job.state])
    return found


def _table_of_jobs(sweep: Sweep) -> str:
    head = [*short_names(sweep.keys).values(), *(head for head, _ in MEASURED.values()), "folder", "state"]
    formats: list[Any] = [*[shown] * len(sweep.keys), *(form.format for _, form in MEASURED.values()), str, str]
    lines = [[form(cell) if cell != "" else "" for form, cell in zip(formats, row, strict=True)] for row in rows(sweep)]
    return table(head, lines)


def _table_over_seeds(sweep: Sweep) -> str:
    """The mean and the spread of the best losses of finished jobs that differ by seeds only, if any."""
    keys = [key for key in sweep.keys if key not in SEEDS]
    groups: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for each in sweep.results:
        if each.curve and each.job.state == "finished":
            groups[tuple(json.dumps(each.job.values.get(key, "")) for key in keys)].append(each.loss)
    if keys == sweep.keys or all(len(losses) < 2 for losses in groups.values()):
        return ""
    lines = []
    for values, losses in sorted(groups.items(), key=lambda group: statistics.mean(group[1])):
        spread = f"{statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
        extent = f"{min(losses):.4f} to {max(losses):.4f}"
        numbers = [f"{statistics.mean(losses):.4f}", spread, extent, f"{len(losses)}"]
        lines.append([*map(shown, map(json.loads, values)), *numbers])
    return f"Over seeds:\n{table([*short_names(keys).values(), 'mean best', 'deviation', 'range', 'jobs'], lines)}"


def draw(sweep: Sweep) -> Any:
    """A figure of a sweep: the best loss over each swept value, and all curves."""
    from matplotlib.figure import Figure

    keys = [key for key in sweep.keys if key not in SEEDS] or sweep.keys[:1]
    results = [each for each in sweep.results if each.curve]
    figure = Figure(figsize=(4 * (len(keys) + 2), 4.5), layout="constrained")
    *panels, curves = figure.subplots(1, len(keys) + 1, width_ratios=[*([1] * len(keys)), 2], squeeze=False)[0]
    for panel, key in zip(panels, keys, strict=True):
        values: list[Any] = [each.job.values.get(key) for each in results]
        numbers = all(type(value) in (int, float) for value in values)
        places = [float(value) if numbers else _plain(shown(value)) for value in values]
        panel.plot(places, [each.loss for each in results], "o", alpha=0.6)
        if numbers and values and 0 < 5 * min(values) < max(values):
            panel.set_xscale("log")
        panel.set(xlabel=_plain(key), ylabel="best validation loss")
    for n, (_, job, curve, _) in enumerate(results):
        label = _plain(job.title) if n < 15 else None  # more would fill the picture
        curves.plot([point.step for point in curve], [point.val_loss for point in curve], ".-", label=label)
    curves.set(title="all runs, the best first", xlabel="step", ylabel="validation loss (nats)")
    if results:
        figure.legend(loc="outside right upper", fontsize="x-small")
    return figure


def _plain(text: str) -> str:
    """A text for a picture, in which $ begins no formula."""
    return text.replace("$", r"\$")[:80]


def save(sweep: Sweep) -> None:
    """Write `table.csv` and `sweep.png` into the sweep's folder."""
    out = io.StringIO()
    csv.writer(out).writerows([[*sweep.keys, *MEASURED, "folder", "state"], *rows(sweep)])
    with best_effort("table.csv"):
        write(sweep.folder / "table.csv", out.getvalue().encode(errors="replace"))
    with best_effort("sweep.png"):
        write_figure(sweep.folder / "sweep.png", draw(sweep))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    parser = Parser(prog="python -m chargpt.compare", description="Compare the runs of a sweep, also while it runs.")
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

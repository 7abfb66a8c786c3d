"""Comparing the runs of a sweep: tables, `table.csv`, `sweep.png`, and the command `python -m chargpt.compare`."""

import argparse
import csv
import io
import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chargpt.command_line import Parser, file_name, open_output, quoted, table
from chargpt.errors import UserError, escape
from chargpt.files import find, write
from chargpt.history import SWEEP
from chargpt.pictures import png
from chargpt.sweep.records import Sweep, read_sweep, short_names, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEEDS = ("seed", "data.seed")
MOST_CURVES = 15  # in the legend


def report(sweep: Sweep) -> str:
    """The tables of a sweep, and what to do next."""
    parts = [f"{sweep.folder}: {sweep.finished} of {sweep.size} jobs finished"]
    if sweep.jobs:
        parts.append(_table_of_jobs(sweep))
    if seeds := _table_over_seeds(sweep):
        parts.append(seeds)
    if sweep.jobs and sweep.jobs[0].best:
        parts.append(f"Sample the best: {quoted(['python', 'sample.py', '--ckpt', str(sweep.jobs[0].folder)])}")
    if sweep.plan and sweep.finished < sweep.size:
        words = sweep.plan.arguments
        flags = next((n for n, word in enumerate(words) if re.match(r"[^-].*=", word)), len(words))  # they come first
        words = [*words[:flags], "resume=allow", f"hydra.sweep.dir={sweep.folder}", *words[flags:]]
        parts.append(f"To resume: {quoted(['python', 'train.py', '-m', *words])}")
    return "\n\n".join(parts)


def _table_of_jobs(sweep: Sweep) -> str:
    names = short_names(sweep.keys)
    head = [*names.values(), "best", "at step", "last", "chars/s", "time", "folder"]
    rows = []
    for job in sweep.jobs:
        cells = [shown(job.values[key]) if key in job.values else "" for key in names]
        if job.best:
            last, speed = job.curve[-1], f"{job.speed:,.0f}" if job.speed else ""
            cells += [f"{job.loss:.4f}", f"{job.best.step:,}", f"{last.val_loss:.4f}", speed, f"{last.seconds:,.0f} s"]
        else:
            cells += [""] * 5
        rows.append([*cells, job.folder.name + (f"  ({job.state})" if job.state != "finished" else "")])
    return table(head, rows)


def _table_over_seeds(sweep: Sweep) -> str:
    """The mean and the spread of the best losses of finished jobs that differ by seeds only, if any."""
    keys = [key for key in sweep.keys if key not in SEEDS]
    groups: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for job in sweep.jobs:
        if job.best and job.state == "finished":
            groups[tuple(shown(job.values.get(key, "")) for key in keys)].append(job.loss)
    if keys == sweep.keys or all(len(losses) < 2 for losses in groups.values()):
        return ""
    head, rows = [*short_names(keys).values(), "mean best", "deviation", "range", "jobs"], []
    for values, losses in sorted(groups.items(), key=lambda group: statistics.mean(group[1])):
        spread = f"{statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
        extent = f"{min(losses):.4f} to {max(losses):.4f}"
        rows.append([*values, f"{statistics.mean(losses):.4f}", spread, extent, f"{len(losses)}"])
    return f"Over seeds:\n{table(head, rows)}"


def as_csv(sweep: Sweep) -> str:
    """The table of all jobs, with values and losses in full."""
    out = io.StringIO()
    rows, measured = csv.writer(out), ["best_val_loss", "best_step", "last_val_loss", "chars_per_second", "seconds"]
    rows.writerow([*sweep.keys, *measured, "state", "folder"])
    for job in sweep.jobs:
        numbers: Sequence[object] = [""] * 5
        if job.best:
            numbers = [job.loss, job.best.step, job.curve[-1].val_loss, job.speed, job.curve[-1].seconds]
        rows.writerow([*(job.values.get(key, "") for key in sweep.keys), *numbers, job.state, job.folder.name])
    return out.getvalue()


def draw(sweep: Sweep) -> "Figure":
    """A picture of a sweep: the best loss over each swept value, and all curves."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = short_names(sweep.keys)
    keys = [key for key in sweep.keys if key not in SEEDS] or sweep.keys[:1]
    jobs = [job for job in sweep.jobs if job.best]
    figure = Figure(figsize=(4 * (len(keys) + 2), 4.5), layout="constrained")
    ratios = [*([1] * len(keys)), 2]
    *panels, curves = figure.subplots(1, len(keys) + 1, width_ratios=ratios, squeeze=False)[0]
    for panel, key in zip(panels, keys, strict=True):
        _draw_values(panel, names[key], [(job.values.get(key), job.loss) for job in jobs])
    for n, job in enumerate(jobs):
        label = _in_picture(job.title or job.folder.name) if n < MOST_CURVES else None
        steps, losses = [point.step for point in job.curve], [point.val_loss for point in job.curve]
        curves.plot(steps, losses, color=f"C{n % 10}", marker=".", linewidth=2.5 if n == 0 else 1, label=label)
    curves.xaxis.set_major_locator(MaxNLocator(integer=True))
    curves.set(title="all runs, the best first", xlabel="step", ylabel="validation loss (nats)")
    if jobs:
        figure.legend(loc="outside right upper", fontsize="x-small")
    for panel in (*panels, curves):
        panel.grid(alpha=0.3)
    return figure


def _draw_values(panel: Any, name: str, found: list[tuple[Any, float]]) -> None:
    """The best losses over the values of one key, and the median of each value's."""
    from matplotlib.ticker import NullFormatter

    values = list(dict.fromkeys(value for value, _ in found))
    numbers = all(type(value) in (int, float) and abs(value) < 2**63 for value in values)
    values.sort(key=None if numbers else str)
    places = {value: float(value) if numbers else float(n) for n, value in enumerate(values)}
    panel.plot([places[value] for value, _ in found], [loss for _, loss in found], "o", alpha=0.6)
    medians = [statistics.median(loss for each, loss in found if each == value) for value in values]
    if len(values) < len(found):
        panel.plot([places[value] for value in values], medians, "-", alpha=0.6)
    if numbers and values and min(values) > 0 and max(values) / min(values) > 5:
        panel.set_xscale("log")
    if len(values) <= 6 or not numbers:
        panel.set_xticks([places[value] for value in values], [_in_picture(shown(value)) for value in values])
    if panel.get_xscale() == "log":
        panel.xaxis.set_minor_formatter(NullFormatter())  # their labels would touch
    panel.set(title=_in_picture(name), xlabel=_in_picture(name), ylabel="best validation loss")


def _in_picture(text: str) -> str:
    """A text for a picture, in which $ begins no formula."""
    return escape(text).replace("$", r"\$")[:80]


def save(sweep: Sweep) -> None:
    """Write `table.csv` and `sweep.png` into the sweep's folder."""
    write(sweep.folder / "table.csv", as_csv(sweep).encode(errors="replace"))
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
    sweep = read_sweep(Path(arguments.sweep) if arguments.sweep is not None else newest())
    with open_output(None) as out:
        out.write(f"{escape(report(sweep))}\n")
    save(sweep)


def newest() -> Path:
    """The folder of the newest sweep."""
    found = find("outputs", SWEEP)
    if not found:
        raise UserError("no sweep in outputs/: python train.py -m seed=1,2 trains one")
    return max(found, key=lambda file: file.stat().st_mtime).parent

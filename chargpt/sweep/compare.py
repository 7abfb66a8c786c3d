"""Compare the runs of a sweep: `python -m chargpt.compare outputs/sweeps/...`."""

import argparse
import csv
import io
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chargpt.command_line import Parser, file_name, open_output, quoted, table
from chargpt.errors import UserError, escape, first_line
from chargpt.files import find, write
from chargpt.pictures import png
from chargpt.sweep.records import SWEEP, Job, Sweep, command_of_sweep, read_sweep, short_names, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEEDS = ("seed", "data.seed")
MOST_CURVES = 15  # that have a line in the legend
MOST_PANELS, MOST_DRAWN = 8, 200


def report(sweep: Sweep) -> str:
    """The tables of a sweep, and what to do next."""
    parts = [f"{sweep.folder}: {sweep.finished} of {sweep.size} jobs finished"]
    if sweep.jobs:
        parts.append(_table_of_jobs(sweep))
    if seeds := _table_over_seeds(sweep):
        parts.append(seeds)
    if sweep.jobs and sweep.jobs[0].best:
        parts.append(f"Sample the best: python sample.py --ckpt {quoted([str(sweep.jobs[0].folder)])}")
    if sweep.unfinished and (command := command_of_sweep(sweep.folder)):
        parts.append(f"To resume: {command}")
    return "\n\n".join(parts)


def _table_of_jobs(sweep: Sweep) -> str:
    names = short_names(sweep.keys)
    head = [*names.values(), "best", "at step", "last", "chars/s", "time", "folder"]
    rows = []
    for job in sweep.jobs:
        cells = [shown(job.values[key]) if key in job.values else "" for key in names]
        if job.best:
            last = job.curve[-1]
            cells += [f"{job.loss:.4f}", f"{job.best.step:,}", f"{last.val_loss:.4f}", f"{job.speed:,.0f}"]
            cells += [f"{last.seconds:,.0f} s"]
        else:
            cells += [""] * 5
        rows.append([*cells, job.folder.name + (f"  ({job.state})" if job.state else "")])
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
    """The finished jobs, by the values of all that is swept but seeds."""
    keys = [key for key in sweep.keys if key not in SEEDS]
    groups: dict[tuple[str, ...], list[Job]] = {}
    for job in sweep.jobs:
        if job.best and not job.state:
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
            numbers = [job.loss, job.best.step, job.curve[-1].val_loss, job.speed, job.curve[-1].seconds]
        state = job.state or "finished"
        rows.writerow([*(job.values.get(key, "") for key in sweep.keys), *numbers, state, job.folder.name])
    return out.getvalue()


def draw(sweep: Sweep) -> "Figure":
    """A picture of a sweep: the best loss over each swept value, and all curves."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = short_names(sweep.keys)
    keys = ([key for key in sweep.keys if key not in SEEDS] or sweep.keys[:1])[:MOST_PANELS]
    jobs = [job for job in sweep.jobs if job.best][:MOST_DRAWN]
    figure = Figure(figsize=(4 * (len(keys) + 2), 4.5), layout="constrained")
    ratios = [*([1] * len(keys)), 2]
    *panels, curves = figure.subplots(1, len(keys) + 1, width_ratios=ratios, squeeze=False)[0]
    for panel, key in zip(panels, keys, strict=True):
        _draw_values(panel, names[key], [(job.values.get(key), job.loss) for job in jobs])
    colours = [f"C{n % 10}" for n in range(len(jobs))]
    for n, (job, colour) in enumerate(zip(jobs, colours, strict=True)):
        label = job.title or job.folder.name
        steps, losses = [point.step for point in job.curve], [point.val_loss for point in job.curve]
        options = {"color": colour, "marker": ".", "linewidth": 2.5 if n == 0 else 1}
        curves.plot(steps, losses, label=_in_picture(label) if n < MOST_CURVES else None, **options)
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
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
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
    """Write `table.csv` and `sweep.png` into the sweep's folder.

    Raises:
        UserError: they cannot be written.
    """
    for name, content in (("table.csv", as_csv(sweep).encode(errors="replace")), ("sweep.png", png(draw(sweep)))):
        try:
            write(sweep.folder / name, content)
        except OSError as error:
            raise UserError(f"cannot write {sweep.folder / name}: {error.strerror}") from error


def find_sweep(outputs: Path = Path("outputs")) -> Path:
    """The newest sweep.

    Raises:
        UserError: there is none.
    """
    found = find(outputs, SWEEP)
    if not found:
        raise UserError(f"no sweep in {outputs}/: python train.py -m seed=1,2 trains one")
    return max(found, key=lambda file: file.stat().st_mtime).parent


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        Its exit status.
    """
    return build_parser().run(compare, argv)


def build_parser() -> Parser:
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
        text = escape(report(sweep))
    except OSError as error:
        raise UserError(f"cannot read {folder}: {first_line(error)}") from error
    with open_output(None) as out:
        out.write(text + "\n")
    save(sweep)


if __name__ == "__main__":
    sys.exit(main())

"""Training speed and memory over each size of the model: `python -m benchmarks.scaling --plot FILE`.

One size at a time differs from the lecture's. The steps are those of `benchmarks.training`.
"""

import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.measure import Measured, hardware, interleaved, parser, spread, table
from benchmarks.peers import LECTURE
from benchmarks.training import B, our_step
from chargpt.model import GPTConfig

VARIED = {
    "n_layer": (1, 3, 6, 12),
    "n_embd": (96, 192, 384, 768),
    "block_size": (64, 128, 256, 512),
    "batch_size": (8, 16, 32, 64),
}


def sizes(name: str, value: int) -> tuple[GPTConfig, int]:
    """The lecture's model and batch size, with one of them changed."""
    return (LECTURE, value) if name == "batch_size" else (replace(LECTURE, **{name: value}), B)


def rates(name: str, value: int, measured: Measured) -> list[float]:
    """Characters per second in each round."""
    model, batch_size = sizes(name, value)
    return [batch_size * model.block_size / spent for spent in measured.seconds]


def plot(measured: dict[str, dict[int, Measured]], title: str, file: Path) -> None:
    """A column for each size: characters per second above, memory below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    axes = figure.subplots(2, len(measured), sharey="row", squeeze=False)
    for (speed, memory), (name, found) in zip(axes.T, measured.items(), strict=True):
        speed.plot(list(found), [statistics.median(rates(name, v, m)) for v, m in found.items()], marker="o")
        memory.plot(list(found), [m.megabytes / 1e3 for m in found.values()], marker="o")
        speed.set(xticks=list(found))
        memory.set(xticks=list(found), xlabel=name)
    axes[0, 0].set(ylabel="characters per second", yscale="log")
    axes[1, 0].set(ylabel="peak memory, GB", yscale="log")
    figure.suptitle(title, fontsize="medium")
    figure.savefig(file)


def main() -> None:
    command = parser(__doc__.splitlines()[0])
    command.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    command.add_argument("--plot", type=Path, metavar="FILE", help="an image to draw, .png or .svg")
    arguments = command.parse_args()
    measured = {}
    for name in VARIED:  # one size at a time: their processes would not fit into memory together
        steps = {
            v: partial(our_step, arguments.device, arguments.precision, None, *sizes(name, v)) for v in VARIED[name]
        }
        measured[name] = interleaved(steps, arguments.repeats, arguments.device)
    rows = [["size", "value", "characters per second", "peak memory, GB"]]
    for name, found in measured.items():
        for value, m in found.items():
            rows.append([name, str(value), spread(rates(name, value, m), digits=0), f"{m.megabytes / 1e3:.2f}"])
    title = f"{hardware()}; {arguments.precision}, medians of {arguments.repeats}"
    print(f"{title} interleaved rounds (range)\n")
    print(table(rows))
    if arguments.plot:
        plot(measured, title, arguments.plot)


if __name__ == "__main__":
    main()

"""The time of a training step by each optimizer: `python -m benchmarks.optimizers`.

A step is that of `benchmarks.training`, in the precision and by the library that a run would choose.
"""

import statistics
from functools import partial

from benchmarks.measure import hardware, interleaved, parser, spread, table
from benchmarks.training import chosen, our_step
from chargpt.model import GPTConfig
from chargpt.optim import OPTIMIZER_CONFIGS
from chargpt.run.config import composed, read_config, register

EXPERIMENTS = ("cpu", "lecture")


def sizes(experiment: str) -> tuple[GPTConfig, int]:
    """The model of an experiment, and its blocks per batch."""
    register()
    settings = read_config(composed([f"experiment={experiment}", "run_dir=x"]))
    assert isinstance(settings.model, GPTConfig)
    return settings.model, settings.data.batch_size


def main() -> None:
    arguments = parser(__doc__.splitlines()[0]).parse_args()
    _, precision = chosen(arguments.device)
    rows = [["experiment", *(f"{name}, ms" for name in OPTIMIZER_CONFIGS), "muon / adamw"]]
    for experiment in EXPERIMENTS:
        steps = {
            name: partial(our_step, arguments.device, precision, None, *sizes(experiment), optimizer_config=kind)
            for name, kind in OPTIMIZER_CONFIGS.items()
        }
        found = interleaved(steps, arguments.repeats, arguments.device)
        times = {name: [1e3 * spent for spent in measured.seconds] for name, measured in found.items()}
        ratios = [after / before for before, after in zip(times["adamw"], times["muon"], strict=True)]
        rows.append([experiment, *map(spread, times.values()), f"{statistics.median(ratios):.2f}x"])
    print(f"{hardware()}\n{precision}; medians of {arguments.repeats} interleaved rounds (range)\n")
    print(table(rows))


if __name__ == "__main__":
    main()

"""Draw docs/results/curves.png and rebuild docs/demo.html: `python -m benchmarks.results`.

The curves come from the `losses.csv` in each folder of docs/results. The demo keeps its model and gets the current
scripts of the page.
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from chargpt.history import Point, read_losses
from chargpt.page.build import filled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def draw(curves: dict[str, list[Point]]) -> "Figure":
    """Validation losses over steps and over time; the legend gives the lowest of each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    over_steps, over_time = figure.subplots(1, 2, sharey=True)
    for name, points in curves.items():
        losses = [point.val_loss for point in points]
        over_steps.plot([point.step for point in points], losses, marker=".")
        over_time.plot([point.seconds / 60 for point in points], losses, marker=".", label=f"{name}: {min(losses):.4f}")
    over_steps.set(xlabel="step", ylabel="validation loss (nats per character)")
    over_time.set(xlabel="minutes of training, validations included")
    for panel in (over_steps, over_time):
        panel.grid(alpha=0.3)
    over_time.legend()
    return figure


def main() -> None:
    curves = {run.name: points for run in sorted(RESULTS.iterdir()) if (points := read_losses(run))}
    draw(curves).savefig(RESULTS / "curves.png", dpi=120)
    demo = RESULTS.with_name("demo.html")
    demo.write_text(renewed(demo.read_text(encoding="utf-8")), encoding="utf-8")


def renewed(page: str) -> str:
    """A page with the same model and the current scripts."""
    facts, weights = (re.search(rf'id="{name}">(.*?)</script>', page, re.DOTALL)[1] for name in ("data", "weights"))
    return filled(json.loads(facts), weights)


if __name__ == "__main__":
    main()

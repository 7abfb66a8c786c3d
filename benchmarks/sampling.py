"""Characters written a second, against the peers: `python -m benchmarks.sampling --nanogpt DIR --lecture FILE`.

Inside the window: from one character to 250. Past it: from a full window. All in fp32, at the lecture's sizes.
"""

import statistics
from collections.abc import Callable

import torch

from benchmarks.measure import hardware, interleaved, parser, spread, table
from benchmarks.peers import SEED, add_peers, ours, peers
from chargpt.generate import generate


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    add_peers(arguments)
    arguments.add_argument("--batch", type=int, default=64, help="samples side by side, in the last row (default 64)")
    arguments = arguments.parse_args()
    device = arguments.device
    model = ours(device).eval()

    def write(length: int, count: int, **options) -> Callable[[], None]:
        start = torch.zeros(1, length, dtype=torch.long, device=device)
        return lambda: [None for _ in generate(model, start, count, **options)]

    def peer(other: torch.nn.Module, length: int, count: int) -> Callable[[], None]:
        start = torch.zeros(1, length, dtype=torch.long, device=device)
        return lambda: other.generate(start, count)

    inside, past, full = 250, 25, SEED["block_size"]
    contenders, counts = {}, {}
    for name, other in peers(arguments).items():
        other.eval()
        contenders[name, "inside"], counts[name, "inside"] = peer(other, 1, inside), inside
        contenders[name, "past, exact"], counts[name, "past, exact"] = peer(other, full, past), past
    for place, length, count, options in (
        ("inside", 1, inside, {}),
        ("past, exact", full, past, {}),
        ("past, stride", full, 2 * full, {"window": "stride"}),
        (f"inside, {arguments.batch} samples", 1, inside, {"num_samples": arguments.batch}),
    ):
        contenders["chargpt", place] = write(length, count, **options)
        counts["chargpt", place] = count * options.get("num_samples", 1)
    taken = interleaved(contenders, arguments.repeats, device)

    rates = {key: [counts[key] / spent for spent in times] for key, times in taken.items()}
    rows = [["model", "window", "characters a second", "against the best peer"]]
    for (name, place), values in rates.items():
        where = place.split(",")[0]
        best = max(
            statistics.median(found)
            for (other, at), found in rates.items()
            if other != "chargpt" and at.split(",")[0] == where
        )
        rows.append([name, place, spread(values, digits=0), f"{statistics.median(values) / best:.1f}x"])
    print(hardware())
    print(f"medians of {arguments.repeats} interleaved rounds (range)\n")
    print(table(rows))


if __name__ == "__main__":
    main()

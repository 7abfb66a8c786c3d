"""Characters written a second, against the peers: `python -m benchmarks.sampling --nanogpt DIR --lecture FILE`.

Inside the window: from one character to 250. Past it: from a full window. All in fp32, at the lecture's sizes.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.measure import hardware, interleaved, parser, spread, table
from benchmarks.peers import SEED, add_peers, ours, peer, peers
from chargpt.generate import generate

INSIDE, PAST, FULL = 250, 25, SEED["block_size"]  # characters


def our_text(device: str, length: int, count: int, **options) -> Callable[[], None]:
    model = ours(device).eval()
    start = torch.zeros(1, length, dtype=torch.long, device=device)
    return lambda: [None for _ in generate(model, start, count, **options)]


def peer_text(name: str, arguments: argparse.Namespace, length: int, count: int) -> Callable[[], None]:
    model = peer(name, arguments).eval()
    start = torch.zeros(1, length, dtype=torch.long, device=arguments.device)
    return lambda: model.generate(start, count)


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    add_peers(arguments)
    arguments.add_argument("--batch", type=int, default=64, help="samples side by side, in the last row (default 64)")
    arguments = arguments.parse_args()
    device = arguments.device
    contenders, counts = {}, {}
    for place, length, count in (("inside", 1, INSIDE), ("past, exact", FULL, PAST)):
        for name in peers(arguments):
            contenders[name, place] = partial(peer_text, name, arguments, length, count)
            counts[name, place] = count
    for place, length, count, options in (
        ("inside", 1, INSIDE, {}),
        ("past, exact", FULL, PAST, {}),
        ("past, stride", FULL, 2 * FULL, {"window": "stride"}),
        (f"inside, {arguments.batch} samples", 1, INSIDE, {"num_samples": arguments.batch}),
    ):
        contenders["chargpt", place] = partial(our_text, device, length, count, **options)
        counts["chargpt", place] = count * options.get("num_samples", 1)
    taken = {key: found.seconds for key, found in interleaved(contenders, arguments.repeats, device).items()}

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

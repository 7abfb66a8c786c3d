"""Characters written per second, against the peers: `python -m benchmarks.sampling --nanogpt DIR --lecture FILE`.

Inside the context window: from one character to 250. Past it: from a full window. In fp32, with the lecture's sizes.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.measure import hardware, interleaved, parser, spread, table
from benchmarks.peers import LECTURE, VOCABULARY, add_peers, peer, peers
from chargpt.generation import Sampling, generate
from chargpt.model import GPT

INSIDE, PAST, FULL = 250, 25, LECTURE.block_size  # characters


def our_text(device: str, length: int, sampling: Sampling) -> Callable[[], None]:
    torch.manual_seed(0)
    model = GPT(LECTURE, VOCABULARY).to(device).eval()
    start = torch.zeros(1, length, dtype=torch.long, device=device)
    return lambda: [None for _ in generate(model, start, sampling)]


def peer_text(name: str, arguments: argparse.Namespace, length: int, count: int) -> Callable[[], None]:
    model = peer(name, arguments).eval()
    start = torch.zeros(1, length, dtype=torch.long, device=arguments.device)
    return lambda: model.generate(start, count)


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    add_peers(arguments)
    arguments.add_argument("--batch", type=int, default=64, help="samples at once in the last row (default 64)")
    arguments = arguments.parse_args()
    contenders, counts = {}, {}
    for place, length, count in (("inside", 1, INSIDE), ("past, exact", FULL, PAST)):
        for name in peers(arguments):
            contenders[name, place] = partial(peer_text, name, arguments, length, count)
            counts[name, place] = count
    for place, length, sampling in (
        ("inside", 1, Sampling(INSIDE)),
        ("past, exact", FULL, Sampling(PAST)),
        ("past, stride", FULL, Sampling(2 * FULL, window="stride")),
        (f"inside, {arguments.batch} samples", 1, Sampling(INSIDE, num_samples=arguments.batch)),
    ):
        contenders["chargpt", place] = partial(our_text, arguments.device, length, sampling)
        counts["chargpt", place] = sampling.max_new_tokens * sampling.num_samples
    taken = interleaved(contenders, arguments.repeats, arguments.device)

    rates = {key: [counts[key] / spent for spent in found.seconds] for key, found in taken.items()}
    rows = [["model", "window", "characters per second", "of the best peer"]]
    for (name, place), values in rates.items():
        where = place.split(",")[0]
        others = [found for (other, at), found in rates.items() if other != "chargpt" and at.split(",")[0] == where]
        best = max(statistics.median(found) for found in others)
        rows.append([name, place, spread(values, digits=0), f"{statistics.median(values) / best:.1f}x"])
    print(f"{hardware()}\nMedians of {arguments.repeats} interleaved rounds (range)\n\n{table(rows)}")


if __name__ == "__main__":
    main()

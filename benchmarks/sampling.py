"""Characters written per second, against the peers: `python -m benchmarks.sampling --nanogpt DIR --lecture FILE`.

Inside the context window: from one character to 250. Past it: from a full window. In fp32, with the lecture's sizes.
The bound, measured in the same rounds, is the time to read all weights once per character inside the window, and to
multiply a whole window's matrices past it.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.measure import SIDE, hardware, interleaved, parser, product, spread, table
from benchmarks.peers import LECTURE, VOCABULARY, add_peers, ours, peer, peers
from chargpt.generation import Sampling, generate
from chargpt.model import GPT

INSIDE, PAST, FULL = 250, 25, LECTURE.block_size  # characters
READ = 1 << 28  # bytes, far more than a cache holds


def our_text(device: str, length: int, sampling: Sampling) -> Callable[[], None]:
    model = ours(device).eval()
    start = torch.zeros(1, length, dtype=torch.long, device=device)
    return lambda: [None for _ in generate(model, start, sampling)]


def peer_text(name: str, arguments: argparse.Namespace, length: int, count: int) -> Callable[[], None]:
    model = peer(name, arguments).eval()
    start = torch.zeros(1, length, dtype=torch.long, device=arguments.device)
    return lambda: model.generate(start, count)


def reading(device: str) -> Callable[[], object]:
    """Read memory as fast as PyTorch can: a sum reads each number once."""
    numbers = torch.ones(READ // 4, device=device)
    return lambda: [numbers.sum() for _ in range(4)]


def weights_read(model: GPT) -> int:
    """Bytes of weights that a step reads; of the position table it reads one row only."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return 4 * (parameters - model.position_embedding_table.weight.numel())


def flops_of_a_window(model: GPT) -> float:
    """To predict the character after a full window: the last block needs only keys and values of the others."""
    matrices = sum(parameter.numel() for parameter in model.blocks[0].parameters() if parameter.dim() == 2)
    attention = 2 * FULL * LECTURE.n_embd  # two products, over half of the window on average
    return FULL * ((LECTURE.n_layer - 1) * (2 * matrices + attention) + 2 * 2 * LECTURE.n_embd**2)


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    add_peers(arguments)
    arguments.add_argument("--batch", type=int, default=64, help="samples at once in the last row (default 64)")
    arguments = arguments.parse_args()
    device = arguments.device
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
        contenders["chargpt", place] = partial(our_text, device, length, sampling)
        counts["chargpt", place] = sampling.max_new_tokens * sampling.num_samples
    contenders["bound", "inside"] = partial(reading, device)
    contenders["bound", "past, exact"] = partial(product, torch.float32, device)
    taken = {key: found.seconds for key, found in interleaved(contenders, arguments.repeats, device).items()}

    model = ours("cpu")
    bandwidth = 4 * READ / min(taken.pop(("bound", "inside")))
    peak = 2 * SIDE**3 / min(taken.pop(("bound", "past, exact")))
    bounds = {"inside": bandwidth / weights_read(model), "past, exact": peak / flops_of_a_window(model)}
    rates = {key: [counts[key] / spent for spent in times] for key, times in taken.items()}
    rows = [["model", "window", "characters per second", "against the best peer", "of the bound"]]
    for (name, place), values in rates.items():
        where = place.split(",")[0]
        best = max(
            statistics.median(found)
            for (other, at), found in rates.items()
            if other != "chargpt" and at.split(",")[0] == where
        )
        bound = f"{statistics.median(values) / bounds[place]:.0%} of {bounds[place]:,.0f}" if place in bounds else ""
        rows.append([name, place, spread(values, digits=0), f"{statistics.median(values) / best:.1f}x", bound])
    print(hardware())
    print(f"memory {bandwidth / 1e9:.1f} GB/s, matrix peak in fp32 {peak / 1e9:,.0f} GFLOP/s (the best round of each)")
    print(f"{VOCABULARY} characters known; medians of {arguments.repeats} interleaved rounds (range)\n")
    print(table(rows))


if __name__ == "__main__":
    main()

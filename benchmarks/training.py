"""Characters a second in training, against the peers: `python -m benchmarks.training --nanogpt DIR --lecture FILE`.

A step is the lecture's: 64 blocks of 256 characters forward, the loss, backward, AdamW. Ours is `CharLM`'s own loss and
optimizer, without the Trainer (`benchmarks.overhead` measures that).
"""

import argparse
import contextlib
import statistics
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.measure import hardware, interleaved, matrix_peak, parser, spread, table
from benchmarks.peers import SEED, add_peers, ours, peer, peers
from chargpt.compiling import PAYS_AFTER, compile_model
from chargpt.module import CharLM

B = 64
OPTIMIZER = {
    "lr": 3e-4, "weight_decay": 0.01, "betas": [0.9, 0.999],
    "schedule": "constant", "warmup_steps": 0, "min_lr_factor": 0.1,
}  # fmt: skip


def flops_per_step(parameters: int, n_layer: int, n_embd: int, characters: int, block_size: int) -> float:
    """As PaLM counts (Chowdhery et al. 2022, appendix B): six a weight and character, and attention's two products."""
    return characters * (6 * parameters + 12 * n_layer * n_embd * block_size)


def autocast(device: str, precision: str) -> contextlib.AbstractContextManager:
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


def peer_step(name: str, arguments: argparse.Namespace, precision: str, compiled: bool) -> Callable[[], None]:
    device = arguments.device
    model = peer(name, arguments).train()
    fused = {"fused": True} if device == "cuda" else {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, **fused)
    if compiled:
        model.compile()
    batch = torch.randint(65, (B, SEED["block_size"] + 1), device=device)

    def step() -> None:
        with autocast(device, precision):
            _, loss = model(batch[:, :-1], batch[:, 1:].contiguous())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def our_step(device: str, precision: str, sizes: dict = SEED, batch_size: int = B) -> Callable[[], None]:
    torch.manual_seed(0)
    config = {name: value for name, value in sizes.items() if name != "vocab_size"}
    module = CharLM({"name": "gpt", **config}, OPTIMIZER, "".join(map(chr, range(65))), {"name": "", "sha256": ""})
    module.to(device).train()
    optimizer = module.configure_optimizers()["optimizer"]
    compile_model(module.net, "auto", torch.device(device), PAYS_AFTER)
    batch = torch.randint(65, (batch_size, sizes["block_size"] + 1), device=device)

    def step() -> None:
        with autocast(device, precision):
            loss = module.training_loss(batch[:, :-1], batch[:, 1:])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    add_peers(arguments)
    arguments.add_argument("--compile", action="store_true", help="measure the peers compiled, too")
    arguments.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=("fp32", "bf16"))
    arguments = arguments.parse_args()
    device = arguments.device
    measured = {}
    for precision in arguments.precisions:
        contenders = {}
        for name in peers(arguments):
            contenders[name, precision] = partial(peer_step, name, arguments, precision, False)
            if arguments.compile:
                contenders[f"{name} compiled", precision] = partial(peer_step, name, arguments, precision, True)
        contenders["chargpt", precision] = partial(our_step, device, precision)
        measured |= interleaved(contenders, arguments.repeats, device)
    taken = {key: found.seconds for key, found in measured.items()}

    best = min(statistics.median(times) for (name, _), times in taken.items() if name != "chargpt")
    T = SEED["block_size"]
    parameters = sum(p.numel() for p in ours("cpu").parameters())
    flops = flops_per_step(parameters, SEED["n_layer"], SEED["n_embd"], B * T, T)
    peaks = {"fp32": matrix_peak(torch.float32, device), "bf16": matrix_peak(torch.bfloat16, device)}
    rows = [
        ["model", "precision", "seconds a step", "characters a second", "of the best peer", "of matrix peak", "GB"],
    ]  # fmt: skip
    for (name, precision), times in taken.items():
        median = statistics.median(times)
        share = flops / median / peaks[precision]
        memory = measured[name, precision].megabytes / 1e3
        speed = [f"{B * T / median:,.0f}", f"{best / median:.2f}x", f"{share:.0%}", f"{memory:.1f}"]
        rows.append([name, precision, spread(times, digits=3), *speed])
    print(hardware())
    print(f"{B} x {T} characters, dropout {SEED['dropout']}; medians of {arguments.repeats} interleaved rounds (range)")
    print(f"matrix peak: fp32 {peaks['fp32'] / 1e9:,.0f}, bf16 {peaks['bf16'] / 1e9:,.0f} GFLOP/s\n")
    print(table(rows))


if __name__ == "__main__":
    main()

"""Characters per second in training, against the peers: `python -m benchmarks.training --nanogpt DIR --lecture FILE`.

A step is the lecture's: 64 blocks of 256 characters forward, the loss, backward, AdamW. Ours is `CharLM`'s own loss and
optimizer, without the Trainer (`benchmarks.overhead` measures that), in every combination of precision and library of
matrix products, so that the rule by which a run chooses them (`chargpt.kernels.choice`) can be checked on any machine.
"""

import argparse
import contextlib
import statistics
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.measure import hardware, interleaved, matrix_peak, parser, spread, table
from benchmarks.peers import LECTURE, VOCABULARY, add_peers, peer, peers
from chargpt.kernels import choice
from chargpt.kernels.compiling import LONG_RUN, compile_model
from chargpt.model import GPT, GPTConfig
from chargpt.module import CharLM
from chargpt.optim import AdamWConfig, OptimizerConfig

B = 64
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}  # as they are called here, and by Lightning


def flops_per_step(parameters: int, n_layer: int, n_embd: int, characters: int, block_size: int) -> float:
    """As PaLM counts (Chowdhery et al. 2022, appendix B): six per weight and character, and attention's products."""
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
    batch = torch.randint(VOCABULARY, (B, LECTURE.block_size + 1), device=device)

    def step() -> None:
        with autocast(device, precision):
            _, loss = model(batch[:, :-1], batch[:, 1:].contiguous())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def our_step(
    device: str,
    precision: str,
    onednn: bool | None = None,
    config: GPTConfig = LECTURE,
    batch_size: int = B,
    optimizer_config: type[OptimizerConfig] = AdamWConfig,
) -> Callable[[], None]:
    """A step of ours, on a CPU by oneDNN or not, or (None) as the rule says."""
    torch.manual_seed(0)
    choice.forced_onednn = onednn
    module = CharLM(config, optimizer_config(), "".join(map(chr, range(VOCABULARY)))).to(device).train()
    optimizer = module.optimizer_config.build(module.net)
    compile_model(module.net, "auto", torch.device(device), LONG_RUN)
    batch = torch.randint(VOCABULARY, (batch_size, config.block_size + 1), device=device)

    def step() -> None:
        with autocast(device, precision):
            loss = module.training_loss(batch[:, :-1], batch[:, 1:])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def chosen(device: str) -> tuple[str, str]:
    """The name and the precision of our row that a run would be, if it was asked for nothing else."""
    wanted = choice.best_precision(device).name
    precision = next((name for name, lightnings in PRECISIONS.items() if lightnings == wanted), "bf16")
    if device != "cpu":
        return "chargpt", precision
    onednn = choice.uses_onednn(torch.bfloat16 if precision == "bf16" else torch.float32)
    return f"chargpt, {'oneDNN' if onednn else 'PyTorch'}", precision


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    add_peers(arguments)
    arguments.add_argument("--compile", action="store_true", help="measure the peers compiled, too")
    arguments.add_argument("--precisions", nargs="+", choices=tuple(PRECISIONS), default=tuple(PRECISIONS))
    arguments = arguments.parse_args()
    device = arguments.device
    measured = {}
    for precision in arguments.precisions:
        contenders = {}
        for name in peers(arguments):
            contenders[name, precision] = partial(peer_step, name, arguments, precision, False)
            if arguments.compile:
                contenders[f"{name} compiled", precision] = partial(peer_step, name, arguments, precision, True)
        libraries = {"chargpt, PyTorch": False, "chargpt, oneDNN": True} if device == "cpu" else {"chargpt": None}
        for name, onednn in libraries.items():
            contenders[name, precision] = partial(our_step, device, precision, onednn)
        measured |= interleaved(contenders, arguments.repeats, device)

    medians = {key: statistics.median(found.seconds) for key, found in measured.items()}
    best_peer = min(median for (name, _), median in medians.items() if not name.startswith("chargpt"))
    best_ours = min(median for (name, _), median in medians.items() if name.startswith("chargpt"))
    T = LECTURE.block_size
    parameters = sum(p.numel() for p in GPT(LECTURE, VOCABULARY).parameters())
    flops = flops_per_step(parameters, LECTURE.n_layer, LECTURE.n_embd, B * T, T)
    peaks = {"fp32": matrix_peak(torch.float32, device), "bf16": matrix_peak(torch.bfloat16, device)}
    rule = chosen(device)
    rows = [
        ["model", "precision", "seconds per step", "characters per second", "of the best peer", "of matrix peak", "GB"],
    ]  # fmt: skip
    for (name, precision), found in measured.items():
        median = medians[name, precision]
        share = flops / median / peaks[precision]
        speed = [f"{B * T / median:,.0f}", f"{best_peer / median:.2f}x", f"{share:.0%}", f"{found.megabytes / 1e3:.1f}"]
        mark = " *" if (name, precision) == rule else ""
        rows.append([name + mark, precision, spread(found.seconds, digits=3), *speed])
    print(hardware())
    print(f"{B} x {T} characters, dropout {LECTURE.dropout}; medians of {arguments.repeats} interleaved rounds (range)")
    print(f"matrix peak: fp32 {peaks['fp32'] / 1e9:,.0f}, bf16 {peaks['bf16'] / 1e9:,.0f} GFLOP/s\n")
    print(table(rows))
    if rule in medians:
        behind = medians[rule] / best_ours - 1
        print(f"\n* what a run chooses by itself here: {behind:.0%} slower than the fastest of ours")


if __name__ == "__main__":
    main()

"""Characters per second in training, against the peers: `python -m benchmarks.training --nanogpt DIR --lecture FILE`.

A step is the lecture's: 64 blocks of 256 characters forward, the loss, backward, AdamW; here without the Trainer, which
`benchmarks.overhead` measures. All combinations of precision and matrix library are timed, to check on any machine what
`chargpt.kernels.choice` would choose.
"""

import argparse
import contextlib
import statistics
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.measure import hardware, interleaved, parser, spread, table
from benchmarks.peers import LECTURE, VOCABULARY, add_peers, peer, peers
from chargpt.kernels import choice
from chargpt.kernels.choice import LONG_RUN, compile_model
from chargpt.model import GPTConfig
from chargpt.module import CharLM
from chargpt.optim import AdamWConfig, OptimizerConfig

B = 64
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}  # names here and in Lightning


def autocast(device: str, precision: str) -> contextlib.AbstractContextManager:
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


def peer_step(name: str, arguments: argparse.Namespace, precision: str, compiled: bool) -> Callable[[], None]:
    device = arguments.device
    model = peer(name, arguments).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=device == "cuda")
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
    """A step of `CharLM`; on a CPU, `onednn` forces or forbids oneDNN's products (None: as a run chooses)."""
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
    """The name and precision of the row that `trainer.precision=auto` would choose."""
    wanted = choice.best_precision(device).name
    precision = next((name for name, lightnings in PRECISIONS.items() if lightnings == wanted), "bf16")
    if device != "cpu":
        return "chargpt", precision
    onednn = choice.uses_onednn(torch.bfloat16 if precision == "bf16" else torch.float32)
    return f"chargpt, {'oneDNN' if onednn else 'PyTorch'}", precision


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    add_peers(arguments)
    arguments.add_argument("--compile", action="store_true", help="also measure the peers with torch.compile")
    arguments = arguments.parse_args()
    device = arguments.device
    measured = {}
    for precision in PRECISIONS:
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
    rule, characters = chosen(device), B * LECTURE.block_size
    rows = [["model", "precision", "seconds per step", "characters per second", "of the best peer", "GB"]]
    for (name, precision), found in measured.items():
        median = medians[name, precision]
        rates = [characters / spent for spent in found.seconds]
        mark = " *" if (name, precision) == rule else ""
        speed = [spread(found.seconds, digits=3), spread(rates, digits=0), f"{best_peer / median:.2f}x"]
        rows.append([name + mark, precision, *speed, f"{found.megabytes / 1e3:.1f}"])
    print(hardware())
    print(f"{B} x {LECTURE.block_size} characters; medians of {arguments.repeats} interleaved rounds (range)\n")
    print(table(rows))
    behind = medians[rule] / best_ours - 1
    print(f"\n* what trainer.precision=auto chooses here: {behind:.0%} slower than the fastest row of chargpt")


if __name__ == "__main__":
    main()

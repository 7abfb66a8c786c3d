"""What a training step costs, by formulas, and by how much they miss: `python -m benchmarks.costs`.

From the sizes of a model and its batch follow its parameters, the operations of a step, the memory of its state and of
what it keeps for the backward pass, and the bytes that devices exchange. With a few constants of this machine, fitted
to steps of small models, the time of other steps follows, too. docs/scaling.md explains the formulas.
"""

import itertools
import statistics
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.measure import Measured, hardware, interleaved, matrix_peak, parser, seconds, spread, table
from benchmarks.peers import VOCABULARY
from benchmarks.training import autocast, chosen, our_step
from chargpt.batches import RandomBlocks
from chargpt.kernels.cpu_attention import ROWS
from chargpt.model import BigramConfig, GPTConfig, ModelConfig
from chargpt.module import CPU_PART, CharLM
from chargpt.optim import OPTIMIZER_CONFIGS
from chargpt.run.config import composed, read_config, register

# What the operators of a layer read and write on a CPU, by whether products are in bf16 and whether there is dropout:
# bytes per character and channel, per pair of characters and head, and per weight and part of a batch; and how many
# operators there are, per part of a batch, and per block of queries in it. Found by `Counted`.
TRAFFIC = {
    (True, False): (404, 34, 17.5, 62, 21),
    (True, True): (451, 64, 17.5, 72, 27),
    (False, False): (481, 0, 11.8, 29, 0),
    (False, True): (742, 124, 11.1, 51, 24),
}
ROTARY, SHIFT = {True: 123, False: 51}, 96  # bytes per character and channel that these options add
ENDS = 60  # bytes per character, and channel or logit, of the embeddings, the last layer and the loss

CONF = Path(__file__).parents[1] / "conf"
DEVICES_GB = (24, 80)  # memory of devices that many have


@dataclass(frozen=True)
class Step:
    """A training step: a model, its blocks per batch on one device, and its optimizer.

    Attributes:
        model, B, optimizer, V: the model, the blocks, the optimizer's name, the distinct characters.
        half: whether matrices are multiplied in bf16 (`bf16-mixed`), or all is fp32.
    """

    model: ModelConfig
    B: int
    optimizer: str = "adamw"
    half: bool = True
    V: int = VOCABULARY

    @property
    def characters(self) -> int:
        return self.B * self.model.block_size

    @property
    def parts(self) -> int:
        """Into how many parts a CPU takes the batch."""
        return -(-self.B // max(1, CPU_PART // self.model.block_size))


def parameters(model: ModelConfig, V: int = VOCABULARY) -> int:
    """How many numbers are trained."""
    if isinstance(model, BigramConfig):
        return V * V
    T, L, C = model.block_size, model.n_layer, model.n_embd
    positions = T * C if model.positions == "learned" else 0
    return L * (12 * C * C + 10 * C) + 2 * C * V + V + 2 * C + positions


def matrices(model: ModelConfig, V: int = VOCABULARY) -> int:
    """How many of them are multiplied with each character: not embeddings, biases and LayerNorms."""
    return 0 if isinstance(model, BigramConfig) else 12 * model.n_layer * model.n_embd**2 + model.n_embd * V


def pairs(T: int) -> int:
    """Pairs of characters of which attention on a CPU multiplies queries and keys: half of T x T, and what the last
    keys of a block of queries are too many for its first."""
    return sum((min(start + ROWS, T) - start) * min(start + ROWS, T) for start in range(0, T, ROWS))


def forward_flops(step: Step) -> int:
    """Of matrix products; an addition and a multiplication are two."""
    model = step.model
    if isinstance(model, BigramConfig):
        return 0
    attention = 4 * model.n_layer * model.n_embd * pairs(model.block_size) * step.B
    return 2 * step.characters * matrices(model, step.V) + attention


def optimizer_flops(step: Step) -> int:
    """Of Muon's matrix products: 38 C^3 for each of four C x C, 50 C^3 for each of two C x 4C."""
    if isinstance(step.model, BigramConfig) or step.optimizer != "muon":
        return 0
    return (4 * 38 + 2 * 50) * step.model.n_layer * step.model.n_embd**3


def flops(step: Step) -> int:
    """Of a whole step: backward, each product becomes two."""
    return 3 * forward_flops(step) + optimizer_flops(step)


def optimizer_bytes(step: Step) -> int:
    """AdamW's two moments of each parameter; Muon's one of the blocks' matrices, two of all else."""
    P = parameters(step.model, step.V)
    once = 12 * step.model.n_layer * step.model.n_embd**2 if isinstance(step.model, GPTConfig) else 0
    return 8 * P - (4 * once if step.optimizer == "muon" else 0)


def state_bytes(step: Step, averaged: bool = False) -> int:
    """Weights, gradients, the optimizer's state and, where there is one, the average of the weights."""
    return (12 if averaged else 8) * parameters(step.model, step.V) + optimizer_bytes(step)


def checkpoint_bytes(step: Step, averaged: bool = False) -> tuple[int, int]:
    """The numbers in `best.ckpt` and in `last.ckpt`; their names, and the settings, come on top."""
    weights = 4 * parameters(step.model, step.V)
    return weights, weights * (2 if averaged else 1) + optimizer_bytes(step)


def kept_bytes(step: Step) -> int:
    """What the forward pass keeps for the backward pass, on a CPU.

    Per character and channel of a layer: the two sums that LayerNorms are taken of, in fp32; and in the precision of
    products what they give (2), queries, keys and values (3), what attention found (1), the hidden layer (4). Beside
    that, attention weights, dropout's random bytes and masks, and, in bf16, copies of the matrices for each part of the
    batch.
    """
    model, N = step.model, step.characters
    outputs = 4 * N * step.V  # the logarithms of the probabilities
    if isinstance(model, BigramConfig):
        return outputs
    C, T, size = model.n_embd, model.block_size, 2 if step.half else 4
    layer = N * C * (2 * 4 + 10 * size)
    layer += N * 2 * 8  # means and deviations of two LayerNorms
    layer += 2 * N * C * size if model.dropout else 0  # masks
    if step.half or model.dropout:
        layer += step.B * model.n_head * pairs(T) * (size + (1 if model.dropout else 0))
    else:
        layer += 4 * N * model.n_head  # PyTorch's kernel keeps the sum of each row
    copies = 2 * matrices(model, step.V) * step.parts if step.half else 0
    return model.n_layer * layer + N * C * (4 + size) + 8 * N + outputs + copies


def training_bytes(step: Step, averaged: bool = False) -> int:
    """Tensors at the peak of a step, where its backward pass begins: the state, what is kept, and twice the gradient of
    the logits."""
    return state_bytes(step, averaged) + kept_bytes(step) + 8 * step.characters * step.V


def cache_bytes(model: ModelConfig, samples: int = 1) -> int:
    """Keys and values of a whole context in sampling, and with `token_shift` the channels that layers look back at."""
    if isinstance(model, BigramConfig):
        return 0
    T, C = model.block_size, model.n_embd
    return 8 * model.n_layer * samples * (T * C + model.shifted)


def exchanged_bytes(model: ModelConfig, devices: int, V: int = VOCABULARY) -> float:
    """What each device sends in a step: of the gradients, in fp32, as a ring's all-reduce does it."""
    return 2 * (devices - 1) / devices * 4 * parameters(model, V)


def largest(memory: float, averaged: bool = False) -> int:
    """Parameters whose state alone fills so many bytes, by AdamW."""
    return int(memory // (20 if averaged else 16))


def operators(step: Step) -> int:
    """How many operators a CPU calls in the forward and the backward pass."""
    model = step.model
    if isinstance(model, BigramConfig):
        return 17
    *_, calls, per_block = TRAFFIC[step.half, model.dropout > 0]
    layer = calls + per_block * -(-model.block_size // ROWS)
    layer += ((8 if step.half else 4) if model.positions == "rotary" else 0) + (14 if model.token_shift else 0)
    added = (step.parts - 1) * (11 * model.n_layer + 6)  # gradients of one part to those of the others
    return step.parts * ((30 if step.half else 20) + model.n_layer * layer) + added


def moved_bytes(step: Step) -> float:
    """What they read and write."""
    model, N = step.model, step.characters
    if isinstance(model, BigramConfig):
        return 49 * N * step.V
    C = model.n_embd
    per_channel, per_pair, per_weight, *_ = TRAFFIC[step.half, model.dropout > 0]
    per_channel += (ROTARY[step.half] if model.positions == "rotary" else 0) + (SHIFT if model.token_shift else 0)
    layer = N * C * per_channel + per_pair * step.B * model.n_head * pairs(model.block_size)
    return model.n_layer * (layer + 12 * C * C * per_weight * step.parts) + ENDS * N * (step.V + C)


# --- Measured: bytes.


class Counted(TorchDispatchMode):
    """Counts the operators that are called inside, and bytes.

    Attributes:
        calls, moved: operators, without those that only look at a tensor in another way, and what they read and write.
        living, most: of the tensors that were made inside: of those that still live, and at most.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.moved = self.living = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        known = self._known | {id(each.untyped_storage()) for each in given}
        out = func(*args, **(kwargs or {}))
        made = [each for each in tree_leaves(out) if isinstance(each, Tensor)]
        if not (func.is_view or func.overloadpacket.__name__ in ("empty", "empty_like", "_unsafe_view", "detach")):
            self.calls += 1
            self.moved += sum(each.numel() * each.itemsize for each in (*given, *made))
        for storage in {id(each.untyped_storage()): each.untyped_storage() for each in made}.values():
            if id(storage) not in known:
                self._known.add(id(storage))
                self.living += storage.nbytes()
                weakref.finalize(storage, self._gone, id(storage), storage.nbytes())
        self.most = max(self.most, self.living)
        return out

    def _gone(self, storage: int, nbytes: int) -> None:
        self._known.discard(storage)
        self.living -= nbytes


class Counts(NamedTuple):
    """What a step was counted to take: bytes kept for its backward pass, the operators of both passes and what they
    move, and the bytes at most of all tensors, weights included."""

    kept: int
    operators: int
    moved: int
    training: int


def count(step: Step) -> Counts:
    """Count what a step takes on a CPU."""
    torch.manual_seed(0)
    module = CharLM(step.model, OPTIMIZER_CONFIGS[step.optimizer](), "".join(map(chr, range(step.V)))).train()
    optimizer = module.optimizer_config.build(module.net)
    batch = torch.randint(step.V, (step.B, step.model.block_size + 1))
    inputs, targets = batch[:, :-1].contiguous(), batch[:, 1:].contiguous()

    def forward() -> Tensor:
        with autocast("cpu", "bf16" if step.half else "fp32"):
            return module.training_loss(inputs, targets)

    forward()  # what is made once, such as rotary turns, is not a step's
    with Counted() as passes:
        loss = forward()
        kept = passes.living
        loss.backward()
    del loss
    optimizer.zero_grad()
    with Counted() as whole:
        for _ in range(2):  # the second has the optimizer's state from the start
            loss = forward()
            optimizer.zero_grad()
            loss.backward()
            del loss  # it would hold what attention keeps
            optimizer.step()
    return Counts(kept, passes.calls, passes.moved, whole.most + 4 * parameters(step.model, step.V))


# --- Measured: time.


@dataclass(frozen=True)
class Machine:
    """What a step's time follows from: seconds per operator called, per FLOP of the model's products and of the
    optimizer's (which are in fp32), and per byte that is read or written."""

    per_operator: float
    per_flop: float
    per_optimizer_flop: float
    per_byte: float

    def predict(self, step: Step) -> float:
        return float(np.dot(amounts(step), astuple(self)))


def amounts(step: Step) -> tuple[float, float, float, float]:
    """How much there is in a step of what `Machine` has the price of. An optimizer reads weights, gradients and its
    state, and writes all but the gradients."""
    moved = moved_bytes(step) + 12 * parameters(step.model, step.V) + 2 * optimizer_bytes(step)
    return operators(step), 3 * forward_flops(step), optimizer_flops(step), moved


def fit(steps: list[Step], spent: list[float], least: Machine) -> Machine:
    """The prices by which the relative errors of these steps are least, in squares; none is below that of `least`."""
    least_prices = np.array(astuple(least))
    rows = np.array([amounts(step) for step in steps]) / np.array(spent)[:, None]
    target = 1 - rows @ least_prices  # what is left for prices above the least
    scale = np.maximum(rows.max(axis=0), 1e-300)
    rows /= scale
    best, prices = np.inf, np.zeros(rows.shape[1])
    for wanted in itertools.product((False, True), repeat=rows.shape[1]):  # few: each choice of those above 0 is tried
        tried = np.zeros(rows.shape[1])
        tried[list(wanted)] = np.linalg.lstsq(rows[:, list(wanted)], target, rcond=None)[0]
        error = float(((rows @ tried - target) ** 2).sum())
        if (tried >= 0).all() and error < best:
            best, prices = error, tried
    return Machine(*(least_prices + prices / scale).tolist())


def all_reduce_seconds(nbytes: int, repeats: int = 5) -> list[float]:
    """Of a sum over two processes of this machine by gloo, as several CPUs exchange gradients."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "seconds")
        torch.multiprocessing.spawn(_all_reduce, (f"{folder}/meeting", nbytes, repeats, file), nprocs=2)
        return [float(line) for line in file.read_text().split()]


def _all_reduce(rank: int, meeting: str, nbytes: int, repeats: int, file: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    numbers = torch.zeros(nbytes // 4)
    found = [seconds(lambda: dist.all_reduce(numbers)) for _ in range(repeats + 1)][1:]
    if rank == 0:
        file.write_text("\n".join(map(str, found)))
    dist.destroy_process_group()


def experiments(half: bool) -> dict[str, Step]:
    """The steps of the experiments, and of a bigram, as `train.py` would take them."""
    names = sorted(file.stem for file in (CONF / "experiment").glob("*.yaml"))
    found = {}
    register()
    for name in ("bigram", *names):
        chosen_one = "model=bigram" if name == "bigram" else f"experiment={name}"
        settings = read_config(composed([chosen_one, "run_dir=x"]))
        found[name] = Step(settings.model, settings.data.batch_size, settings.optimizer.name, half)
    return found


def small(half: bool) -> dict[str, Step]:
    """The steps that a machine's prices are fitted to: small, and different in all that costs."""

    def step(n_layer: int, n_head: int, n_embd: int, block_size: int, B: int, **options: Any) -> Step:
        optimizer = options.pop("optimizer", "adamw")
        return Step(
            GPTConfig("gpt", block_size, n_layer, n_head, n_embd, **{"dropout": 0.0} | options), B, optimizer, half
        )

    steps = (
        step(2, 2, 64, 64, 8),
        step(4, 4, 128, 64, 12),
        step(2, 4, 256, 128, 16, dropout=0.1),
        step(6, 4, 128, 256, 16),
        step(3, 6, 384, 64, 16),
        step(1, 3, 96, 512, 16, dropout=0.1),
        step(2, 6, 192, 256, 32, dropout=0.2),
        step(4, 4, 128, 128, 16, optimizer="muon", positions="rotary", token_shift=True),
        step(2, 8, 256, 64, 16, optimizer="muon"),
        step(1, 6, 384, 128, 8, optimizer="muon"),
    )
    return {named(each): each for each in steps}


def named(step: Step) -> str:
    """Its sizes in short."""
    model = step.model
    assert isinstance(model, GPTConfig)
    options = "".join(
        f", {name}"
        for name, chosen_ in {
            "dropout": model.dropout,
            "rotary": model.positions == "rotary",
            "shift": model.token_shift,
            "Muon": step.optimizer == "muon",
        }.items()
        if chosen_
    )
    return f"L={model.n_layer} C={model.n_embd} T={model.block_size} B={step.B}{options}"


def held_out(half: bool) -> dict[str, Step]:
    """The steps that are predicted: all experiments, and the lecture's with one size changed."""
    steps = experiments(half)
    lecture = steps["lecture"]
    for change in ({"n_layer": 2}, {"n_embd": 192}, {"block_size": 128}):
        steps["lecture, " + ", ".join(f"{name}={value}" for name, value in change.items())] = replace(
            lecture, model=replace(lecture.model, **change)
        )
    return steps | {"lecture, batch_size=16": replace(lecture, B=16)}


def work(step: Step, device: str) -> Callable[[], None]:
    """A step that can be timed."""
    kind = OPTIMIZER_CONFIGS[step.optimizer]
    return our_step(device, "bf16" if step.half else "fp32", None, step.model, step.B, kind)


def sizes_table(steps: dict[str, Step]) -> list[list[str]]:
    """What the formulas say of each."""
    rows = [["", "parameters", "GFLOP per step", "attention", "Muon", "state", "kept", "peak", "best, last.ckpt"]]
    rows[0].append("cache")
    for name, step in steps.items():
        P, total = parameters(step.model, step.V), flops(step)
        attention = 3 * (forward_flops(step) - 2 * step.characters * matrices(step.model, step.V))
        shares = [f"{part / total:.0%}" if total else "" for part in (attention, optimizer_flops(step))]
        sizes = [f"{number / 1e6:,.1f}" for number in (state_bytes(step), kept_bytes(step), training_bytes(step))]
        files = ", ".join(f"{number / 1e6:,.2f}" for number in checkpoint_bytes(step))
        cache = f"{cache_bytes(step.model) / 1e6:.1f}"
        rows.append([name, f"{P:,}", f"{total / 1e9:,.1f}", *shares, *sizes, files, cache])
    return rows


def doubled(step: Step) -> list[list[str]]:
    """By how much each cost grows where one size of a step is doubled."""
    model = step.model
    assert isinstance(model, GPTConfig)
    changed = {
        "layers": replace(step, model=replace(model, n_layer=2 * model.n_layer)),
        "channels (and heads)": replace(step, model=replace(model, n_embd=2 * model.n_embd, n_head=2 * model.n_head)),
        "context": replace(step, model=replace(model, block_size=2 * model.block_size)),
        "batch": replace(step, B=2 * step.B),
    }

    def costs(each: Step) -> list[float]:
        weights = parameters(each.model, each.V)
        return [weights, flops(each), moved_bytes(each), kept_bytes(each), cache_bytes(each.model)]

    rows = [["twice the", "parameters, state, exchange", "FLOPs", "bytes moved", "kept", "cache"]]
    for name, each in changed.items():
        rows.append([name, *(f"{new / old:.2f}" for new, old in zip(costs(each), costs(step), strict=True))])
    return rows


def misses(steps: dict[str, Step], measured: dict[str, Measured], machine: Machine, base: float) -> list[list[str]]:
    """Predicted and measured milliseconds, and megabytes of the process, of each."""
    rows = [["", "ms: predicted", "measured (range)", "error", "MB: predicted", "measured", "error"]]
    for name, step in steps.items():
        found = measured[name]
        time, memory = 1e3 * machine.predict(step), base + training_bytes(step) / 1e6
        spent = [1e3 * each for each in found.seconds]
        row = [name, f"{time:,.1f}", spread(spent, digits=1), f"{time / statistics.median(spent) - 1:+.0%}"]
        rows.append([*row, f"{memory:,.0f}", f"{found.megabytes:,.0f}", f"{memory / found.megabytes - 1:+.0%}"])
    return rows


def main() -> None:
    command = parser(__doc__.splitlines()[0])
    command.add_argument("--formulas", action="store_true", help="only compute; measure nothing")
    arguments = command.parse_args()
    if arguments.device != "cpu":
        command.error("the formulas of time and memory are those of a CPU")
    _, precision = chosen("cpu")
    half = precision == "bf16"
    steps = experiments(half)
    print(f"{hardware()}; {precision}; megabytes\n\n{table(sizes_table(steps))}\n")
    print(f"The lecture's step:\n\n{table(doubled(steps['lecture']))}\n")
    for memory in DEVICES_GB:
        plain, averaged = (f"{largest(memory * 1e9, each) / 1e9:.1f}" for each in (False, True))
        print(f"{memory} GB: the state of {plain} billion parameters, or {averaged} with an average of the weights")
    if arguments.formulas:
        return

    fitted, predicted = small(half), held_out(half)
    contenders = {name: partial(work, step, "cpu") for name, step in (fitted | predicted).items()}
    measured = interleaved(contenders, arguments.repeats)
    peaks = {dtype: matrix_peak(dtype) for dtype in (torch.float32, torch.bfloat16)}
    least = Machine(0, 1 / peaks[torch.bfloat16 if half else torch.float32], 1 / peaks[torch.float32], 0)
    medians = [statistics.median(measured[name].seconds) for name in fitted]
    machine = fit(list(fitted.values()), medians, least)
    free = fit(list(fitted.values()), medians, Machine(0, 0, 0, 0))
    base = statistics.median(measured[name].megabytes - training_bytes(step) / 1e6 for name, step in fitted.items())
    print(f"\nMedians of {arguments.repeats} interleaved rounds (range); {base:,.0f} MB of the process")
    print(f"Matrix peak: {', '.join(f'{dtype} {peak / 1e9:,.0f} GFLOP/s' for dtype, peak in peaks.items())}")
    for what, prices in (("Fitted", machine), ("Without a least price, which is not used", free)):
        print(f"{what}: {', '.join(f'{name} {1e12 * price:,.4g} ps' for name, price in asdict(prices).items())}")
    print()
    for title, steps in (("fitted to", fitted), ("predicted", predicted)):
        rows = misses(steps, measured, machine, base)
        rows[0][0] = title
        if title == "predicted":
            rows[0].append("error without a least price")
            for row, step in zip(rows[1:], steps.values(), strict=True):
                row.append(f"{free.predict(step) / statistics.median(measured[row[0]].seconds) - 1:+.0%}")
        print(f"{table(rows)}\n")

    ids = np.random.default_rng(0).integers(0, VOCABULARY, 10**6, dtype=np.uint8)
    rows = [["a batch is drawn in", "ms"]]
    for name, step in experiments(half).items():
        blocks = RandomBlocks(ids, step.model.block_size, step.B, seed=0)
        rows.append([name, spread([1e3 * seconds(partial(blocks.__getitem__, n)) for n in range(50)])])
    print(f"{table(rows)}\n")
    rows = [["two processes sum by gloo", "MB", "ms"]]
    for name in ("cpu", "lecture"):
        nbytes = 4 * parameters(predicted[name].model)
        spent = [1e3 * each for each in all_reduce_seconds(nbytes, arguments.repeats)]
        rows.append([f"the gradients of {name}", f"{nbytes / 1e6:,.1f}", spread(spent)])
    print(table(rows))


if __name__ == "__main__":
    main()

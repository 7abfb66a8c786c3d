"""What a training step costs by formulas, and what it takes on this machine: `python -m benchmarks.costs`.

docs/scaling.md lists the formulas; tests/test_costs.py compares them with what PyTorch counts.
"""

from dataclasses import dataclass, replace
from functools import partial

from benchmarks.measure import Work, hardware, interleaved, parser, spread, table
from benchmarks.peers import VOCABULARY
from benchmarks.training import chosen, our_step
from chargpt.kernels.cpu_attention import ROWS
from chargpt.model import GPTConfig
from chargpt.module import CPU_PART
from chargpt.optim import OPTIMIZER_CONFIGS
from chargpt.run.config import CONF, composed, read_config, register


@dataclass(frozen=True)
class Step:
    """A training step on one device: B blocks, V distinct characters; `half`: matrix products in bf16, not fp32.

    Sizes are in bytes. A multiply-add is two FLOPs.
    """

    model: GPTConfig
    B: int
    optimizer: str = "adamw"
    half: bool = True
    V: int = VOCABULARY

    @property
    def layers(self) -> tuple[int, int]:
        """L and C."""
        return self.model.n_layer, self.model.n_embd

    @property
    def parameters(self) -> int:
        L, C = self.layers
        positions = self.model.block_size * C if self.model.positions == "learned" else 0
        return L * (12 * C * C + 10 * C) + 2 * C * self.V + self.V + 2 * C + positions

    @property
    def matrices(self) -> int:
        """The parameters that each character is multiplied with: not embeddings, biases and LayerNorms."""
        L, C = self.layers
        return 12 * L * C * C + C * self.V

    @property
    def attention_flops(self) -> int:
        """Of the forward pass."""
        L, C = self.layers
        return 4 * L * C * pairs(self.model.block_size) * self.B

    @property
    def forward_flops(self) -> int:
        return 2 * self.B * self.model.block_size * self.matrices + self.attention_flops

    @property
    def optimizer_flops(self) -> int:
        """Muon's matrix products: 38 C^3 for each of four C x C, 50 C^3 for each of two C x 4C."""
        L, C = self.layers
        return (4 * 38 + 2 * 50) * L * C**3 if self.optimizer == "muon" else 0

    @property
    def flops(self) -> int:
        """Of a step: backward, each product becomes two."""
        return 3 * self.forward_flops + self.optimizer_flops

    @property
    def optimizer_bytes(self) -> int:
        """AdamW's two moments of each parameter; Muon has one of the blocks' matrices."""
        L, C = self.layers
        return 8 * self.parameters - (4 * 12 * L * C * C if self.optimizer == "muon" else 0)

    @property
    def state_bytes(self) -> int:
        """Weights, gradients and the optimizer's state."""
        return 8 * self.parameters + self.optimizer_bytes

    @property
    def activation_bytes(self) -> int:
        """What the forward pass keeps for the backward pass on a CPU."""
        model, N, size = self.model, self.B * self.model.block_size, 2 if self.half else 4
        L, C = self.layers
        layer = N * C * (2 * 4 + 10 * size)  # inputs of two LayerNorms in fp32, of matrices and of attention
        layer += N * 2 * 8  # means and deviations of the LayerNorms
        layer += 2 * N * C * size if model.dropout else 0  # dropout masks
        if self.half or model.dropout:  # attention's weights, and the random bytes of their dropout
            layer += self.B * model.n_head * pairs(model.block_size) * (size + (1 if model.dropout else 0))
        else:
            layer += 4 * N * model.n_head  # PyTorch's fused kernel keeps the sum of each row
        parts = -(-self.B // max(1, CPU_PART // model.block_size))  # of the batch; each has a bf16 copy of the matrices
        copies = 2 * self.matrices * parts if self.half else 0
        return L * layer + N * C * (4 + size) + 8 * N + 4 * N * self.V + copies

    @property
    def peak_bytes(self) -> int:
        """Of tensors, as the backward pass begins: the state, the activations, and twice the logits' gradient."""
        return self.state_bytes + self.activation_bytes + 8 * self.B * self.model.block_size * self.V

    @property
    def cache_bytes(self) -> int:
        """Keys and values of one sample's context and, with token shift, the channels that layers look back at."""
        L, C = self.layers
        T, shifted = self.model.block_size, C // 2 if self.model.token_shift else 0
        return 8 * L * (T * C + shifted)


def pairs(T: int) -> int:
    """Pairs of characters for which attention on a CPU multiplies queries and keys: the past, in blocks of queries."""
    return sum((min(start + ROWS, T) - start) * min(start + ROWS, T) for start in range(0, T, ROWS))


def experiments(half: bool) -> dict[str, Step]:
    """The steps that `train.py` takes in each experiment."""
    register()
    found = {}
    for name in sorted(file.stem for file in (CONF / "experiment").glob("*.yaml")):
        settings = read_config(composed([f"experiment={name}", "run_dir=x"]))
        found[name] = Step(settings.model, settings.data.batch_size, settings.optimizer.name, half)
    return found


def sizes_table(steps: dict[str, Step]) -> list[list[str]]:
    """Megabytes by the formulas."""
    rows = [["", "parameters", "GFLOP per step", "attention", "Muon", "state", "activations", "peak", "cache"]]
    for name, step in steps.items():
        shares = [
            f"{part / step.flops:.0%}" if part else "" for part in (3 * step.attention_flops, step.optimizer_flops)
        ]
        sizes = (step.state_bytes, step.activation_bytes, step.peak_bytes, step.cache_bytes)
        megabytes = [f"{size / 1e6:,.1f}" for size in sizes]
        rows.append([name, f"{step.parameters:,}", f"{step.flops / 1e9:,.1f}", *shares, *megabytes])
    return rows


def doubling_table(step: Step) -> list[list[str]]:
    """By how much costs grow when one size of a step is doubled."""
    model = step.model
    doubled = {
        "layers": replace(step, model=replace(model, n_layer=2 * model.n_layer)),
        "channels and heads": replace(step, model=replace(model, n_embd=2 * model.n_embd, n_head=2 * model.n_head)),
        "context": replace(step, model=replace(model, block_size=2 * model.block_size)),
        "batch": replace(step, B=2 * step.B),
    }
    names = ("parameters", "flops", "activation_bytes", "cache_bytes")
    rows = [["twice the", "parameters, state, exchange", "FLOPs", "activations", "cache"]]
    for name, each in doubled.items():
        rows.append([name, *(f"{getattr(each, what) / getattr(step, what):.2f}" for what in names)])
    return rows


def work(step: Step, precision: str) -> Work:
    return partial(our_step, "cpu", precision, None, step.model, step.B, OPTIMIZER_CONFIGS[step.optimizer])


def main() -> None:
    command = parser(__doc__.splitlines()[0])
    command.add_argument("--measure", nargs="*", metavar="NAME", help="the steps to measure (default: all)")
    arguments = command.parse_args()
    _, precision = chosen("cpu")
    steps = experiments(precision == "bf16")
    print(f"{hardware()}; {precision}; megabytes\n\n{table(sizes_table(steps))}\n")
    print(f"The lecture's step:\n\n{table(doubling_table(steps['lecture']))}\n")
    for name, other in (("cpu", "adamw"), ("lecture", "muon")):
        steps[f"{name}, {other}"] = replace(steps[name], optimizer=other)
    wanted = list(steps) if arguments.measure is None else arguments.measure
    found = interleaved({name: work(steps[name], precision) for name in wanted}, arguments.repeats)
    rows = [["", "ms per step", "GFLOP/s", "tensors, MB", "process, MB"]]
    for name, measured in found.items():
        milliseconds = spread([1e3 * each for each in measured.seconds], digits=1)
        rate, peak = steps[name].flops / min(measured.seconds) / 1e9, steps[name].peak_bytes / 1e6
        rows.append([name, milliseconds, f"{rate:,.0f}", f"{peak:,.0f}", f"{measured.megabytes:,.0f}"])
    print(f"\nMedians of {arguments.repeats} interleaved rounds (range); GFLOP/s of the best\n\n{table(rows)}")


if __name__ == "__main__":
    main()

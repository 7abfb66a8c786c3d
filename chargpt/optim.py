"""Optimizers, which parameters they decay, the schedule of the learning rate; and Muon: momentum whose matrices are
orthogonalized, so that every direction of a weight learns at the same rate."""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from chargpt.kernels import unscale_before_step
from chargpt.settings import require, require_at_least

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # steep at 0; carries singular values of (0, 1] near 1 in five steps
STEPS = 5
# From the progress of the decay (0 to 1) to the remaining share of the peak (1 to 0).
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "linear": lambda done: 1 - done,
}


@dataclass
class OptimizerConfig:
    """The settings of every optimizer.

    Attributes:
        lr: the peak learning rate.
        weight_decay: of matrices; biases, LayerNorms and embeddings do not decay. A weight forgets its earlier values
            in 1 / (lr * weight_decay) steps.
        betas: the decay rates of AdamW's two moments.
        schedule: after the warm-up the learning rate stays (`constant`), or falls to `min_lr_factor` times its peak at
            the last step (`cosine`, `linear`).
        decay_share: the last share of the run, over which the rate falls; until then it stays at its peak.
        warmup_steps: optimizer steps over which it rises from near 0.
    """

    name: str = ""
    lr: float = 3e-4
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    schedule: str = "constant"
    decay_share: float = 1.0
    warmup_steps: int = 0
    min_lr_factor: float = 0.1

    def __post_init__(self) -> None:
        require(0 < self.lr < math.inf, "optimizer.lr", "above 0", self.lr)
        require(0 <= self.weight_decay < math.inf, "optimizer.weight_decay", "at least 0", self.weight_decay)
        are_rates = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(are_rates, "optimizer.betas", "two numbers, each at least 0 and below 1", self.betas)
        require(self.schedule in SCHEDULES, "optimizer.schedule", f"one of {', '.join(SCHEDULES)}", self.schedule)
        require(0 < self.decay_share <= 1, "optimizer.decay_share", "above 0 and at most 1", self.decay_share)
        require_at_least(0, self, "optimizer", "warmup_steps")
        require(0 <= self.min_lr_factor <= 1, "optimizer.min_lr_factor", "between 0 and 1", self.min_lr_factor)

    def build(self, net: nn.Module) -> Optimizer:
        """The optimizer of a model's parameters."""
        raise NotImplementedError

    def decay_of(self, name: str, weight: Tensor) -> float:
        """The decay of one parameter."""
        return self.weight_decay if weight.dim() == 2 and "embedding" not in name else 0.0


@dataclass
class AdamWConfig(OptimizerConfig):
    """AdamW (Loshchilov & Hutter 2019); the defaults are the lecture's."""

    name: str = "adamw"

    def build(self, net: nn.Module) -> Optimizer:
        groups: dict[float, list[nn.Parameter]] = defaultdict(list)  # by their decay
        for name, weight in net.named_parameters():
            groups[self.decay_of(name, weight)].append(weight)
        params = [{"params": group, "weight_decay": decay} for decay, group in groups.items()]
        optimizer = AdamW(params, lr=self.lr, betas=(self.betas[0], self.betas[1]), fused=True)
        unscale_before_step(optimizer)
        return optimizer


@dataclass
class MuonConfig(OptimizerConfig):
    """Muon on the matrices of the blocks (query, key and value are one each), AdamW on all other parameters.

    Attributes:
        lr: roughly how much one step changes a matrix's output.
        momentum: the share of the mean of earlier gradients that a step keeps.
        adamw_lr: the peak learning rate of AdamW, with the same schedule.
    """

    name: str = "muon"
    lr: float = 0.02
    weight_decay: float = 0.1
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    momentum: float = 0.95
    adamw_lr: float = 6e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.momentum < 1, "optimizer.momentum", "at least 0 and below 1", self.momentum)
        require(0 < self.adamw_lr < math.inf, "optimizer.adamw_lr", "above 0", self.adamw_lr)

    def build(self, net: nn.Module) -> Optimizer:
        matrices: dict[int, list[nn.Parameter]] = defaultdict(list)  # by the number stacked in one
        others: dict[float, list[nn.Parameter]] = defaultdict(list)  # by their decay
        for name, weight in net.named_parameters():
            if name.startswith("blocks.") and weight.dim() == 2:
                matrices[3 if name.endswith("qkv.weight") else 1].append(weight)
            else:
                others[self.decay_of(name, weight)].append(weight)
        groups: list[dict[str, Any]] = [
            {"params": params, "parts": parts, "momentum": self.momentum, "weight_decay": self.weight_decay}
            for parts, params in matrices.items()
        ]
        groups += [{"params": params, "lr": self.adamw_lr, "weight_decay": decay} for decay, params in others.items()]
        return Muon(groups, lr=self.lr, betas=(self.betas[0], self.betas[1]))


OPTIMIZER_CONFIGS: dict[str, type[OptimizerConfig]] = {"adamw": AdamWConfig, "muon": MuonConfig}


def lr_factor(config: OptimizerConfig, step: int, max_steps: int) -> float:
    """The factor of the peak learning rate after `step` of `max_steps` optimizer steps."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    last = max_steps - 1
    begin = max(config.warmup_steps, round(last * (1 - config.decay_share)))  # of the decay
    done = min(1.0, max(0, step - begin) / max(1, last - begin))
    remaining = SCHEDULES[config.schedule](done)
    return config.min_lr_factor + (1 - config.min_lr_factor) * remaining


def orthogonalized(matrices: Tensor) -> Tensor:
    """The nearest orthogonal matrices, roughly: singular vectors stay, singular values come to between 0.6 and 1.3,
    except those below a thousandth of the largest.

    By a Newton-Schulz iteration with the coefficients of Jordan et al. (2024): products of matrices, no decomposition.
    Each step multiplies X by a polynomial of X X^T. These polynomials are small, so they are multiplied with each other
    first, and then once with X, which is long in most layers. Half precision would lose the small singular values,
    which X X^T squares.

    Args:
        matrices: (k, n, m).
    """
    wide = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices  # (k, n, m), n <= m
    wide = wide.to(torch.promote_types(wide.dtype, torch.float32))
    wide = wide / torch.linalg.matrix_norm(wide, keepdim=True).clamp(min=1e-12)  # no singular value is above 1
    square = wide @ wide.mT  # (k, n, n)
    polynomial = product = _polynomial(square)
    for _ in range(STEPS - 1):
        square = polynomial @ square @ polynomial  # X X^T of the next X
        polynomial = _polynomial(square)
        product = polynomial @ product
    result = product @ wide
    return (result.mT if wide.shape != matrices.shape else result).to(matrices.dtype)


def _polynomial(square: Tensor) -> Tensor:
    """The factor of one step, from X X^T, (k, n, n)."""
    a, b, c = NEWTON_SCHULZ
    polynomial = torch.baddbmm(square, square, square, beta=b, alpha=c)
    polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
    return polynomial


class Muon(Optimizer):
    """Muon (Jordan et al. 2024) for the groups of parameters with a `momentum`; AdamW for the others.

    One step of a matrix W of shape (out, in), with G its gradient and M a running mean of G:

        M <- momentum * M + (1 - momentum) * G
        W <- (1 - lr * weight_decay) * W - lr * sqrt(out / in) * orthogonalized(momentum * M + (1 - momentum) * G)

    so that a step changes a layer's output by about lr, whatever its sizes (Bernstein & Newhouse 2024), and W forgets
    its earlier values in 1 / (lr * weight_decay) steps.

    A group's `parts` is the number of matrices stacked in each of its parameters: three in one of query, key and value.
    Those of one shape are orthogonalized together.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]):
        super().__init__(groups, {"lr": lr, "betas": betas})
        self._hold_adamw()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Replaces groups and state, at the end of `load_state_dict`."""
        super().__setstate__(state)
        self._hold_adamw()

    def _hold_adamw(self) -> None:
        """An AdamW that shares its groups, learning rates included, and the state with this optimizer."""
        self.adamw = AdamW([group for group in self.param_groups if "momentum" not in group], fused=True)
        self.adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if "momentum" in group:
                self._step_matrices(group)
        self.adamw.step()
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for weight in group["params"]:
            if weight.grad is None:
                continue
            state = self.state[weight]
            if not state:
                state["mean"] = torch.zeros_like(weight)
            mean = state["mean"].lerp_(weight.grad, 1 - group["momentum"])
            ahead = mean.lerp(weight.grad, 1 - group["momentum"])  # Nesterov momentum: one step ahead
            parts = (group["parts"], -1, weight.shape[1])
            alike[weight.shape].append((weight.view(parts), ahead.view(parts)))
        for pairs in alike.values():
            directions = orthogonalized(torch.cat([ahead for _, ahead in pairs]))
            scale = (directions.shape[-2] / directions.shape[-1]) ** 0.5
            for (weight, _), direction in zip(pairs, directions.split(group["parts"]), strict=True):
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(direction, alpha=group["lr"] * scale)

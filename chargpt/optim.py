"""Optimizers, which parameters they decay, and the schedule of the learning rate."""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from chargpt.kernels import unscale_before_step
from chargpt.muon import Muon
from chargpt.settings import require

# From the progress of the decay (0 to 1) to the remaining share of the peak (1 to 0).
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "linear": lambda done: 1 - done,
}


@dataclass
class OptimizerConfig:
    """The settings of every optimizer: a peak learning rate and its schedule.

    Attributes:
        lr: the peak learning rate.
        schedule: after the warm-up the learning rate stays (`constant`), or falls to `min_lr_factor` times its peak at
            the last step (`cosine`, `linear`).
        decay_share: the last share of the run, over which the rate falls; until then it stays at its peak.
        warmup_steps: optimizer steps over which it rises from near 0.
    """

    name: str = ""
    lr: float = 3e-4
    schedule: str = "constant"
    decay_share: float = 1.0
    warmup_steps: int = 0
    min_lr_factor: float = 0.1

    def __post_init__(self) -> None:
        require(self.schedule in SCHEDULES, "optimizer.schedule", f"one of {', '.join(SCHEDULES)}", self.schedule)
        require(0 < self.decay_share <= 1, "optimizer.decay_share", "above 0 and at most 1", self.decay_share)
        require(0 <= self.min_lr_factor <= 1, "optimizer.min_lr_factor", "between 0 and 1", self.min_lr_factor)
        for name, value in vars(self).items():
            if name in ("lr", "adamw_lr"):
                require(0 < value < math.inf, f"optimizer.{name}", "above 0", value)
            if name == "warmup_steps" or name.endswith("_decay"):
                require(0 <= value < math.inf, f"optimizer.{name}", "at least 0", value)
            if name == "momentum":
                require(0 <= value < 1, f"optimizer.{name}", "at least 0 and below 1", value)
            if name == "betas":
                is_right = len(value) == 2 and all(0 <= beta < 1 for beta in value)
                require(is_right, f"optimizer.{name}", "two numbers, each at least 0 and below 1", value)

    def build(self, net: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a model's parameters."""
        raise NotImplementedError


@dataclass
class AdamWConfig(OptimizerConfig):
    """AdamW (Loshchilov & Hutter 2019); the defaults are the lecture's.

    Attributes:
        weight_decay: of matrices; biases, LayerNorms and embeddings do not decay.
        betas: the decay rates of the two moments.
    """

    name: str = "adamw"
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])

    def build(self, net: nn.Module) -> torch.optim.Optimizer:
        embeddings = {id(module.weight) for module in net.modules() if isinstance(module, nn.Embedding)}
        groups: dict[float, list[nn.Parameter]] = {self.weight_decay: [], 0.0: []}
        for parameter in net.parameters():
            decays = parameter.dim() >= 2 and id(parameter) not in embeddings
            groups[self.weight_decay if decays else 0.0].append(parameter)
        params = [{"params": group, "weight_decay": decay} for decay, group in groups.items()]
        optimizer = torch.optim.AdamW(params, lr=self.lr, betas=(self.betas[0], self.betas[1]), fused=True)
        unscale_before_step(optimizer)
        return optimizer


@dataclass
class MuonConfig(OptimizerConfig):
    """Muon on the matrices of the blocks (query, key and value are one each), AdamW on all other parameters.

    A weight forgets its earlier values in 1 / (lr * decay) steps: choose a decay by that.

    Attributes:
        lr: roughly how much one step changes a matrix's output.
        momentum: the share of the mean of earlier gradients that a step keeps.
        weight_decay: of these matrices.
        adamw_lr: the peak learning rate of AdamW, with the same schedule.
        embedding_decay: of the two embedding tables, by AdamW.
        head_decay: of the last layer, by AdamW.
        betas: the decay rates of its two moments.
    """

    name: str = "muon"
    lr: float = 0.02
    momentum: float = 0.95
    weight_decay: float = 0.1
    adamw_lr: float = 6e-3
    embedding_decay: float = 0.0
    head_decay: float = 0.1
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])

    def build(self, net: nn.Module) -> torch.optim.Optimizer:
        matrices: dict[int, list[nn.Parameter]] = defaultdict(list)  # by the number stacked in one
        others: dict[float, list[nn.Parameter]] = defaultdict(list)  # by their decay
        for name, weight in net.named_parameters():
            if name.startswith("blocks.") and weight.dim() == 2:
                matrices[3 if name.endswith("qkv.weight") else 1].append(weight)
            elif "embedding" in name:
                others[self.embedding_decay].append(weight)
            else:
                others[self.head_decay if weight.dim() == 2 else 0.0].append(weight)
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

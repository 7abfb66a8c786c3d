"""Optimizers, which parameters they decay, and the schedule of the learning rate."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from chargpt.errors import UserError
from chargpt.kernels.private import unscale_before_step

# From how far the decay is (0 to 1) to what is left of the peak (1 to 0).
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "linear": lambda done: 1 - done,
}


@dataclass
class OptimizerConfig:
    """What every optimizer has: a peak learning rate, and the schedule that it follows.

    Attributes:
        lr: the peak learning rate.
        schedule: after the warm-up the learning rate stays (`constant`), or falls to `min_lr_factor` times its peak at
            the last step (`cosine`, `linear`).
        warmup_steps: optimizer steps over which it rises from near 0.

    Raises:
        UserError: a value is out of range.
    """

    name: str = ""
    lr: float = 3e-4
    schedule: str = "constant"
    warmup_steps: int = 0
    min_lr_factor: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise UserError(f"optimizer.lr must be above 0; got {self.lr}")
        if self.schedule not in SCHEDULES:
            raise UserError(f"optimizer.schedule must be one of {', '.join(SCHEDULES)}; got {self.schedule!r}")
        if self.warmup_steps < 0:
            raise UserError(f"optimizer.warmup_steps must be at least 0; got {self.warmup_steps}")
        if not 0 <= self.min_lr_factor <= 1:
            raise UserError(f"optimizer.min_lr_factor must be between 0 and 1; got {self.min_lr_factor}")

    def build(self, net: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of a model's parameters."""
        raise NotImplementedError


@dataclass
class AdamWConfig(OptimizerConfig):
    """AdamW (Loshchilov & Hutter 2019); the defaults are the lecture's.

    Attributes:
        weight_decay: of matrices; biases, LayerNorms and embeddings do not decay.
        betas: the decay rates of the two moments.

    Raises:
        UserError: a value is out of range.
    """

    name: str = "adamw"
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"optimizer.weight_decay must be at least 0; got {self.weight_decay}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"optimizer.betas must be two numbers, each at least 0 and below 1; got {self.betas}")

    def build(self, net: nn.Module) -> torch.optim.Optimizer:
        decayed, others = matrices_and_others(net)
        optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": self.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=self.lr,
            betas=(self.betas[0], self.betas[1]),
            fused=True,
        )
        unscale_before_step(optimizer)
        return optimizer


OPTIMIZER_CONFIGS: dict[str, type[OptimizerConfig]] = {"adamw": AdamWConfig}


def matrices_and_others(net: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The weights of linear layers; and biases, LayerNorms and embeddings."""
    embeddings = {id(module.weight) for module in net.modules() if isinstance(module, nn.Embedding)}
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in net.parameters():
        groups[parameter.dim() >= 2 and id(parameter) not in embeddings].append(parameter)
    return groups[True], groups[False]


def lr_factor(config: OptimizerConfig, step: int, max_steps: int) -> float:
    """What the peak learning rate is multiplied with.

    Args:
        step: optimizer steps taken so far.
        max_steps: optimizer steps of the whole run.
    """
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    done = min(1.0, (step - config.warmup_steps) / max(1, max_steps - 1 - config.warmup_steps))
    remaining = SCHEDULES[config.schedule](done)
    return config.min_lr_factor + (1 - config.min_lr_factor) * remaining

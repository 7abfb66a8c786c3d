"""Muon: momentum whose matrices are orthogonalized, so that every direction of a weight learns at the same rate."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # steep at 0; carries singular values of (0, 1] near 1 in five steps
STEPS = 5


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

"""Muon: momentum whose matrices are orthogonalized, so that every direction of a weight learns at the same rate."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # steep at 0; carries singular values of (0, 1] near 1 in five steps


def orthogonalized(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest orthogonal matrices, roughly: the singular vectors stay, the singular values come to between 0.6 and
    1.3, but for those that are a thousandth of the largest or less.

    By a Newton-Schulz iteration with the coefficients of Jordan et al. (2024): products of matrices, no decomposition.
    Each of its steps multiplies X by a polynomial of X X^T. All of these can be multiplied with each other first, small
    as they are, and then once with X, which is long in most layers. Half precision would lose the small singular
    values, which X X^T squares.

    Args:
        matrices: (k, n, m).
    """
    wide = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices  # (k, n, m), n <= m
    wide = wide.to(torch.promote_types(wide.dtype, torch.float32))
    wide = wide / torch.linalg.matrix_norm(wide, keepdim=True).clamp(min=1e-12)  # no singular value is above 1
    square = wide @ wide.mT  # (k, n, n)
    polynomial = product = _polynomial(square)
    for _ in range(steps - 1):
        square = polynomial @ square @ polynomial  # of the X that the last step made
        polynomial = _polynomial(square)
        product = polynomial @ product
    result = product @ wide
    return (result.mT if wide.shape != matrices.shape else result).to(matrices.dtype)


def _polynomial(square: Tensor) -> Tensor:
    """With what a step multiplies X: that of X X^T, (k, n, n)."""
    a, b, c = NEWTON_SCHULZ
    polynomial = torch.baddbmm(square, square, square, beta=b, alpha=c)
    polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
    return polynomial


class Muon(torch.optim.AdamW):
    """Muon (Jordan et al. 2024) for the groups of parameters that have a `momentum`; AdamW for the others.

    One step of a matrix W of shape (out, in), with G its gradient and M a running mean of G:

        M <- momentum * M + (1 - momentum) * G
        W <- (1 - lr * weight_decay) * W - lr * sqrt(out / in) * orthogonalized(momentum * M + (1 - momentum) * G)

    so that what a layer puts out changes by about lr, whatever its sizes (Bernstein & Newhouse 2024), and W forgets
    what it was in 1 / (lr * weight_decay) steps.

    A group's `parts` says how many matrices are stacked in each of its parameters: three in one of query, key and
    value. Those of one shape are orthogonalized together.
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        torch.optim.Optimizer.__setstate__(self, state)  # AdamW's own would look for its moments in each state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients: dict[Tensor, Tensor | None] = {}
        for group in self.param_groups:
            if "momentum" in group:
                self._step_matrices(group)
                gradients |= {weight: weight.grad for weight in group["params"]}
                for weight in group["params"]:
                    weight.grad = None  # which AdamW passes over
        super().step()
        for weight, gradient in gradients.items():
            weight.grad = gradient
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
            ahead = mean.lerp(weight.grad, 1 - group["momentum"])  # Nesterov's: as the next mean begins
            parts = (group["parts"], -1, weight.shape[1])
            alike[weight.shape].append((weight.view(parts), ahead.view(parts)))
        for pairs in alike.values():
            directions = orthogonalized(torch.cat([ahead for _, ahead in pairs]))
            scale = (directions.shape[-2] / directions.shape[-1]) ** 0.5
            for (weight, _), direction in zip(pairs, directions.split(group["parts"]), strict=True):
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(direction, alpha=group["lr"] * scale)

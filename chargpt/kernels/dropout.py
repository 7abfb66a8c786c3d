"""Dropout that costs a CPU little.

PyTorch's own draws one random number for each element, which takes a CPU longer than the multiplications around it.
Here one random byte decides about each element, and a draw gives eight bytes: about 15 times less work. The keep
probability is therefore a multiple of 1/256 (0.2 becomes 51/256), and kept elements are scaled by its exact inverse:
expectations stay the same.
"""

import torch
from torch import Tensor, nn


def random_bytes(*shape: int) -> Tensor:
    """Uniform random bytes, uint8, from the CPU's default generator: reproducible from the seed."""
    count = torch.Size(shape).numel()
    words = torch.empty((count + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.uint8)[:count].view(shape)


def kept_values(dropout: float) -> int:
    """How many of a byte's 256 values keep an element: at least 1, so that scaling stays possible."""
    return max(1, round(256 * (1 - dropout)))


class Dropout(nn.Dropout):
    """`nn.Dropout`, except that training on a CPU draws bytes."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if not x.is_cpu or torch.compiler.is_compiling():
            return super().forward(x)
        kept = kept_values(self.p)
        mask = torch.empty_like(x, requires_grad=False)
        # Compared straight into numbers of x's type: a mask of booleans would take several times longer to multiply.
        torch.lt(random_bytes(*x.shape), kept, out=mask)
        return x * mask.mul_(256 / kept)

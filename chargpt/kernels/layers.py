"""Linear layers and dropout by the CPU's quickest kernels."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from chargpt import kernels
from chargpt.kernels.choice import uses_onednn


class Linear(nn.Linear):
    """`nn.Linear`, on CPUs by oneDNN where that is faster."""

    columns: Tensor | None = None  # inside `fixed_weights`, the transposed weight: (in, out)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        if self.columns is not None and x.numel() == self.in_features and not torch.is_grad_enabled():
            return _one_row(x, self.columns, self.bias)
        if x.is_cpu and not torch.compiler.is_compiling():
            if torch.is_autocast_enabled("cpu"):
                dtype = torch.get_autocast_dtype("cpu")
                bias = None if self.bias is None else self.bias.to(dtype)
                return linear_on_cpu(x.to(dtype), self.weight.to(dtype), bias)
            return linear_on_cpu(x, self.weight, self.bias)
        return super().forward(x)


def linear_on_cpu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weight^T + bias, with x (..., in), weight (out, in) and bias (out,)."""
    if not uses_onednn(x.dtype):
        return nn.functional.linear(x, weight, bias)
    return CPULinear.apply(x, weight, bias) if torch.is_grad_enabled() else _onednn(x, weight, bias)


class CPULinear(torch.autograd.Function):
    """x weight^T + bias by oneDNN, for training on CPUs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows, inputs = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            _onednn(grad, weight.t()) if for_x else None,
            _weight_gradient(rows, inputs) if for_weight else None,
            rows.sum(0) if for_bias else None,
        )


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight^T + bias; the weight may be a transposed view, x would be copied."""
    assert kernels.onednn_linear is not None
    return kernels.onednn_linear(x, weight, bias, "none", [], "")


def _weight_gradient(rows: Tensor, inputs: Tensor) -> Tensor:
    """rows^T inputs: (N, out) and (N, in) to (out, in)."""
    if rows.dtype != torch.float32:
        return rows.t() @ inputs  # PyTorch gives this to oneDNN, which reads the transposed matrix without a copy
    # In fp32 that would use MKL. `_onednn` copies a transposed x, so x is the narrower matrix.
    if inputs.shape[1] < rows.shape[1]:
        return _onednn(inputs.t(), rows.t()).t().contiguous()
    return _onednn(rows.t(), inputs.t())


@contextlib.contextmanager
def fixed_weights(model: nn.Module) -> Iterator[None]:
    """Inside, linear layers multiply single rows with transposed copies of their weights, on CPUs in fp32. This makes
    decoding faster; the copies pay off after about 30 characters."""
    layers = [each for each in model.modules() if isinstance(each, Linear) and each.weight.is_cpu]
    for layer in layers if uses_onednn(torch.float32) else []:
        if layer.weight.dtype == torch.float32:
            layer.columns = layer.weight.detach().t().contiguous()
    try:
        yield
    finally:
        for layer in layers:
            layer.columns = None


def _one_row(x: Tensor, columns: Tensor, bias: Tensor | None) -> Tensor:
    """x columns + bias of a single row x, (..., in) with (in, out), as the sum of the rows of `columns` weighted by x.

    Such a product only reads the weights once. An embedding bag reads them as fast as the memory gives them, which
    neither MKL nor oneDNN does; each thread sums one bag.
    """
    bags = _bags(len(columns), torch.get_num_threads())
    out = torch.embedding_bag(columns, *bags, False, 0, False, x.reshape(-1))[0].sum(0)  # mode 0 sums: (threads, out)
    if bias is not None:
        out += bias
    return out.view(*x.shape[:-1], -1)


@functools.cache
def _bags(size: int, threads: int) -> tuple[Tensor, Tensor]:
    """All row numbers, and where each thread's begin."""
    with torch.inference_mode():
        return torch.arange(size), torch.arange(threads) * size // threads


def random_bytes(*shape: int) -> Tensor:
    """Uniform random bytes, uint8, from the CPU's default generator: reproducible from the seed."""
    count = torch.Size(shape).numel()
    words = torch.empty((count + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.uint8)[:count].view(shape)


def kept_values(dropout: float) -> int:
    """How many of a byte's 256 values keep an element: at least 1, so that scaling stays possible."""
    return max(1, round(256 * (1 - dropout)))


class Dropout(nn.Dropout):
    """`nn.Dropout`, cheap on CPUs.

    PyTorch draws one random number for each element, which takes a CPU longer than the multiplications around it. Here
    one random byte decides about each element, and a draw gives eight bytes: about 15 times less work. The keep
    probability is therefore a multiple of 1/256 (0.8 becomes 205/256), and kept elements are scaled by its inverse.
    """

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

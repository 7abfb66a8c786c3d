"""A linear layer that takes the CPU's quickest kernels."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

onednn = torch.ops.mkldnn._linear_pointwise  # (x, weight, bias, "none" or "relu", [], ""): what torch.compile calls
ONEDNN_TYPES = set()
if torch.backends.mkldnn.is_available():
    ONEDNN_TYPES.add(torch.float32)
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        ONEDNN_TYPES.add(torch.bfloat16)


class Linear(nn.Linear):
    """`nn.Linear`, with a ReLU behind it where asked, and oneDNN on CPUs that have it.

    PyTorch itself takes MKL's kernels in fp32, which on AMD CPUs need twice the time, and in bf16 writes the bias and
    the ReLU in passes of their own.
    """

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        weight, bias = self.weight, self.bias
        if x.is_cpu and not torch.compiler.is_compiling():
            if torch.is_autocast_enabled("cpu"):
                dtype = torch.get_autocast_dtype("cpu")
                x, weight, bias = (t if t is None else t.to(dtype) for t in (x, weight, bias))
            if x.dtype in ONEDNN_TYPES:
                if torch.is_grad_enabled():
                    return CPULinear.apply(x, weight, bias, relu)
                return onednn(x, weight, bias, "relu" if relu else "none", [], "")
        out = nn.functional.linear(x, weight, bias)
        return out.relu() if relu else out


class CPULinear(torch.autograd.Function):
    """x weight^T + bias, and max(0, .) of it where asked, for training on CPUs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        out = onednn(x, weight, bias, "relu" if relu else "none", [], "")
        ctx.save_for_backward(x, weight, out if relu else None)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, out = ctx.saved_tensors
        if out is not None:
            grad = torch.ops.aten.threshold_backward(grad, out, 0)
        rows = grad.reshape(-1, grad.shape[-1])
        seen = x.reshape(-1, x.shape[-1])
        grads = [None, None, None, None]
        if ctx.needs_input_grad[0]:
            grads[0] = _product(rows, weight).view(x.shape)
        if ctx.needs_input_grad[1]:
            grads[1] = _product(rows.t(), seen)
        if ctx.needs_input_grad[2]:
            grads[2] = rows.sum(0)
        return tuple(grads)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a b, by oneDNN also in fp32, in which `a @ b` would be MKL's."""
    return onednn(a, b.t(), None, "none", [], "") if a.dtype == torch.float32 else a @ b

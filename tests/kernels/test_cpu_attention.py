"""The attention that is written out for training on CPUs, against the formula."""

import pytest
import torch
from helpers import plain_attention, random_qkv

from chargpt import kernels
from chargpt.kernels import cpu_attention
from chargpt.kernels.cpu_attention import CPUAttention, causal_attention_on_cpu
from chargpt.kernels.layers import kept_values, random_bytes

T = 16


@pytest.mark.parametrize("rows", [1, 6, 8, 64])
@pytest.mark.parametrize("dropout", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("private", [True, False])
def test_same_mask_same_outputs_and_gradients(rows, dropout, private, monkeypatch):
    """With PyTorch's private operator, and without."""
    monkeypatch.setattr(cpu_attention, "ROWS", rows)
    if not private:
        monkeypatch.setattr(kernels, "softmax_gradient", None)
    torch.manual_seed(1)
    kept = kept_values(dropout)
    noise = random_bytes(15, T, T)
    mask = (noise.view(5, 3, T, T) < kept).double() * (256 / kept)
    blocks = [noise[:, start : start + rows, : start + rows] for start in range(0, T, rows)] if dropout else None
    found, theirs = random_qkv(T), random_qkv(T)
    out, expected = CPUAttention.apply(found, blocks, kept), plain_attention(*theirs, mask if dropout else None)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (mine,), (right,) = torch.autograd.grad(out, found, grad), torch.autograd.grad(expected, theirs, grad)
    torch.testing.assert_close(mine, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("length", [T, 640])  # ten blocks, whose parts of the gradients are added up
def test_low_precision_is_as_good_as_the_plain_formula_in_it(dtype, length):
    grad = torch.randn(5, 3, length, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def results(function, dtype):
        x = random_qkv(length, dtype)
        out = function(x)
        return out, *torch.autograd.grad(out, x, grad.to(dtype))[0]

    exact = results(lambda x: plain_attention(*x), torch.float64)
    theirs = results(lambda x: plain_attention(*x), dtype)
    found = results(lambda x: causal_attention_on_cpu(x, 0.0), dtype)
    for mine, other, right in zip(found, theirs, exact, strict=True):
        assert mine.dtype == dtype
        assert (mine.double() - right).norm() <= 1.5 * (other.double() - right).norm()

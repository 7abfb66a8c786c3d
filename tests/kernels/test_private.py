"""PyTorch's private operators, and that nothing changes in a build that lacks them."""

import pytest
import torch
from helpers import plain_attention, random_qkv
from torch.nn import functional as F

from chargpt.kernels import choice, cpu_attention, linear, private


@pytest.mark.skipif(private.onednn_linear is None, reason="this build of PyTorch has no oneDNN")
def test_the_linear_operator():
    x, weight, bias = torch.randn(3, 4), torch.randn(5, 4), torch.randn(5)
    plain = F.linear(x, weight, bias)
    torch.testing.assert_close(private.onednn_linear(x, weight, bias, "none", [], ""), plain)
    torch.testing.assert_close(private.onednn_linear(x, weight, bias, "relu", [], ""), plain.relu())


@pytest.fixture
def another_build(monkeypatch):
    """A PyTorch without them."""
    for name in ("onednn_linear", "onednn_has_bf16", "softmax_gradient"):
        monkeypatch.setattr(private, name, None)
    monkeypatch.setattr(linear, "onednn_linear", None)
    monkeypatch.setattr(cpu_attention, "softmax_gradient", None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_linear_without_them(another_build, dtype):
    assert not choice.uses_onednn(dtype)
    torch.manual_seed(0)
    ours, theirs = linear.Linear(8, 6).to(dtype), torch.nn.Linear(8, 6).to(dtype)
    theirs.load_state_dict(ours.state_dict())
    x, grad = torch.randn(2, 3, 8, dtype=dtype, requires_grad=True), torch.randn(2, 3, 6, dtype=dtype)
    results = [
        (layer(x), *torch.autograd.grad(layer(x), [x, layer.weight, layer.bias], grad)) for layer in (ours, theirs)
    ]
    torch.testing.assert_close(*results)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x.float()).dtype == torch.bfloat16


def test_attention_without_them(another_build):
    ours, theirs = random_qkv(100), random_qkv(100)
    out, expected = cpu_attention.causal_attention_on_cpu(ours, 0.0), plain_attention(*theirs)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    grad = torch.randn(out.shape, dtype=torch.float64)
    (mine,), (right,) = torch.autograd.grad(out, ours, grad), torch.autograd.grad(expected, theirs, grad)
    torch.testing.assert_close(mine, right, rtol=1e-9, atol=1e-12)


def test_attention_with_dropout_is_the_same_with_and_without_them(monkeypatch):
    def results():
        torch.manual_seed(0)
        qkv = random_qkv(100)
        out = cpu_attention.causal_attention_on_cpu(qkv, 0.3)
        return out, *torch.autograd.grad(out.square().sum(), qkv)

    found = results()
    monkeypatch.setattr(cpu_attention, "softmax_gradient", None)
    torch.testing.assert_close(results(), found, rtol=1e-9, atol=1e-12)

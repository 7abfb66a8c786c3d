"""What is looked up in PyTorch, and that nothing changes on a build that lacks it."""

import pytest
import torch
from helpers import plain_attention, random_qkv
from torch.nn import functional as F

from chargpt.kernels import choice, cpu_attention, linear, private
from chargpt.kernels.private import find


@pytest.mark.parametrize(
    "path", ["no_such_name", "nn.NoSuchLayer", "no.such.name", "ops.mkldnn._no_such_operator", "ops.no_such.operator"]
)
def test_what_is_not_there_is_none(path):
    assert find(path) is None


def test_what_is_there_is_found():
    assert find("nn.functional.linear") is F.linear
    assert find("ops.aten.add") is torch.ops.aten.add


@pytest.mark.skipif(private.onednn_linear is None, reason="this build of PyTorch has no oneDNN")
def test_the_operators_do_what_is_said_of_them():
    x, weight, bias = torch.randn(3, 4), torch.randn(5, 4), torch.randn(5)
    plain = F.linear(x, weight, bias)
    torch.testing.assert_close(private.onednn_linear(x, weight, bias, "none", [], ""), plain)
    torch.testing.assert_close(private.onednn_linear(x, weight, bias, "relu", [], ""), plain.relu())


@pytest.fixture
def another_build(monkeypatch):
    """A PyTorch that has none of them."""
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

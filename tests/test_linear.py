import pytest
import torch
from torch.nn import functional as F

from chargpt import linear
from chargpt.linear import Linear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (64, 3)])
def test_the_same_function(bias, shape):
    torch.manual_seed(0)
    layer = Linear(24, 48, bias=bias)
    x = torch.randn(*shape, 24)
    with torch.no_grad():
        exact = F.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
        assert (layer(x) - exact).abs().max() < 1e-5
        with torch.inference_mode():
            assert (layer(x) - exact).abs().max() < 1e-5
    assert layer(x).requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types(dtype):
    layer = Linear(8, 8).to(dtype)
    with torch.no_grad():
        assert layer(torch.randn(2, 8, dtype=dtype)).dtype == dtype
        with torch.autocast("cpu", torch.bfloat16):
            assert Linear(8, 8)(torch.randn(2, 8)).dtype == torch.bfloat16


def test_strided_input():
    layer = Linear(8, 4)
    x = torch.randn(6, 8, 5)
    with torch.no_grad():
        torch.testing.assert_close(layer(x.mT[:, -1:]), F.linear(x.mT[:, -1:], layer.weight, layer.bias))


def onednn(dtype):
    return pytest.mark.skipif(dtype not in linear.ONEDNN_TYPES, reason="oneDNN does not have this type on this CPU")


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "dtype",
    [pytest.param(dtype, marks=onednn(dtype)) for dtype in (torch.float32, torch.bfloat16)],
)
def test_training_is_as_good_as_pytorchs_own(dtype, bias, relu):
    torch.manual_seed(0)
    layer = Linear(24, 48, bias=bias)
    x, grad = torch.randn(3, 5, 24), torch.randn(3, 5, 48)

    def results(dtype, function):
        inputs = [t.detach().to(dtype).requires_grad_() for t in (x, *layer.parameters())]
        out = function(*inputs)
        return [out, *torch.autograd.grad(out, inputs, grad.to(dtype))]

    def plain(x, weight, bias=None):
        out = F.linear(x, weight, bias)
        return out.relu() if relu else out

    def ours(x, weight, bias=None):
        return linear.CPULinear.apply(x, weight, bias, relu)

    for mine, other, right in zip(
        results(dtype, ours), results(dtype, plain), results(torch.float64, plain), strict=True
    ):
        assert mine.dtype == dtype
        assert (mine - right).norm() <= 1.5 * (other - right).norm() + 1e-6


def test_gradients_come_where_they_are_asked_for():
    layer = Linear(8, 8)
    x = torch.randn(4, 8, requires_grad=True)
    layer.weight.requires_grad_(False)
    layer(x, relu=True).sum().backward()
    assert layer.weight.grad is None
    assert x.grad.shape == x.shape
    assert layer.bias.grad.shape == (8,)


def test_autocast_converts_the_weights_and_gives_their_own_gradients():
    layer = Linear(8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(torch.randn(4, 8))
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert layer.weight.grad.dtype == layer.bias.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_relu(dtype):
    layer = Linear(8, 8).to(dtype)
    x = torch.randn(4, 8, dtype=dtype)
    for context in (torch.enable_grad, torch.no_grad):
        with context():
            torch.testing.assert_close(layer(x, relu=True), layer(x).relu())

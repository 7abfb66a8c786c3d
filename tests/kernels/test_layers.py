import pytest
import torch
from torch import nn
from torch.nn import functional as F

from chargpt import kernels
from chargpt.kernels import choice
from chargpt.kernels.layers import CPULinear, Dropout, Linear, fixed_weights, kept_values, random_bytes

needs_onednn = pytest.mark.skipif(kernels.onednn_linear is None, reason="this build of PyTorch has no oneDNN")
needs_onednn_bf16 = pytest.mark.skipif(
    not choice.uses_onednn(torch.bfloat16), reason="oneDNN is not taken for bf16 on this CPU"
)


@pytest.fixture(params=[pytest.param(True, marks=needs_onednn), False], ids=["oneDNN", "PyTorch"])
def either_library(request, monkeypatch):
    """By oneDNN, and by PyTorch's choice, whatever the rule on this CPU."""
    monkeypatch.setattr(choice, "forced_onednn", request.param)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (64, 3)])
def test_the_same_function(bias, shape, either_library):
    torch.manual_seed(0)
    layer = Linear(24, 48, bias=bias)
    x = torch.randn(*shape, 24)
    with torch.no_grad():
        exact = F.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
        assert (layer(x) - exact).abs().max() < 1e-5
        with torch.inference_mode():
            assert (layer(x) - exact).abs().max() < 1e-5
    out = layer(x)
    assert (out - exact).abs().max() < 1e-5
    assert ("CPULinear" in out.grad_fn.name()) is choice.forced_onednn


@needs_onednn
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_onednn_bf16)])
def test_training_is_as_good_as_pytorchs_own(dtype, bias):
    torch.manual_seed(0)
    layer = Linear(24, 48, bias=bias)
    x, grad = torch.randn(3, 5, 24), torch.randn(3, 5, 48)

    def results(dtype, function):
        inputs = [t.detach().to(dtype).requires_grad_() for t in (x, *layer.parameters())]
        out = function(*inputs)
        return [out, *torch.autograd.grad(out, inputs, grad.to(dtype))]

    by_onednn = results(dtype, lambda x, weight, bias=None: CPULinear.apply(x, weight, bias))
    for mine, other, right in zip(by_onednn, results(dtype, F.linear), results(torch.float64, F.linear), strict=True):
        assert mine.dtype == dtype
        assert (mine - right).norm() <= 1.5 * (other - right).norm() + 1e-6


def test_gradients_for_some_parameters(either_library):
    layer = Linear(8, 8)
    x = torch.randn(4, 8, requires_grad=True)
    layer.weight.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(4, 8))
    torch.testing.assert_close(layer.bias.grad, torch.full((8,), 4.0))


@pytest.mark.parametrize("private", [True, False])
def test_gradients_under_autocast_have_the_weights_type(private, monkeypatch):
    """Also in a build of PyTorch without oneDNN."""
    if not private:
        monkeypatch.setattr(kernels, "onednn_linear", None)
    layer = Linear(8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(torch.randn(4, 8))
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert layer.weight.grad.dtype == layer.bias.grad.dtype == torch.float32


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("threads", [1, 3])
def test_single_rows_with_fixed_weights(bias, threads, monkeypatch):
    """Inside the context a row is multiplied in another way, with the same result; several rows are not."""
    monkeypatch.setattr(choice, "forced_onednn", True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(0)
    layer, calls = Linear(25, 48, bias=bias), []
    monkeypatch.setattr(torch, "embedding_bag", lambda *a, real=torch.embedding_bag: calls.append(1) or real(*a))
    row, rows = torch.randn(1, 1, 25), torch.randn(3, 1, 25)
    with torch.no_grad():
        expected = layer(row), layer(rows)
        with fixed_weights(nn.ModuleList([layer])):
            torch.testing.assert_close((layer(row), layer(rows)), expected)
        assert calls == [1]
        assert layer(row).equal(expected[0])
        assert calls == [1]
    with fixed_weights(layer):
        assert layer(row).requires_grad
    assert layer.columns is None


@pytest.mark.parametrize("shift", [1, 8, 256])
def test_bytes_are_independent_of_their_neighbours(shift):
    torch.manual_seed(0)
    x = random_bytes(1 << 20).double() - 127.5
    correlation = (x[:-shift] * x[shift:]).mean() / x.square().mean()
    assert abs(correlation) < 5 / 2**10  # 5 deviations


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
def test_rate_and_scale(p):
    torch.manual_seed(0)
    kept = kept_values(p)
    assert abs(kept / 256 - (1 - p)) <= 1 / 512
    y = Dropout(p).train()(torch.ones(1000, 1000))
    assert set(y.unique().tolist()) == {0.0, torch.tensor(256 / kept).item()}
    share = (y > 0).double().mean().item()
    assert abs(share - kept / 256) < 5 * (0.25 / 1e6) ** 0.5
    assert y.mean().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("p", [0.3, 0.9999])
def test_the_gradient_is_the_mask(p, dtype):
    x = torch.randn(50, 53, dtype=dtype, requires_grad=True)
    y = Dropout(p).train()(x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert y.dtype == grad.dtype == dtype
    assert y.isfinite().all()
    torch.testing.assert_close(y, x * grad)


def test_off_when_it_should_be():
    x = torch.randn(5)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0).train()(x), x)

import pytest
import torch
from torch import nn

from chargpt.kernels.dropout import Dropout, kept_values, random_bytes


def test_bytes_are_uniform():
    torch.manual_seed(0)
    counts = torch.bincount(random_bytes(1000, 2560).flatten().int(), minlength=256).double()
    chi_squared = ((counts - 10_000) ** 2 / 10_000).sum().item()
    assert 170 < chi_squared < 350  # 255 degrees of freedom: mean 255, deviation 22.6


@pytest.mark.parametrize("shift", [1, 8, 256])
def test_bytes_are_independent_of_their_neighbours(shift):
    torch.manual_seed(0)
    x = random_bytes(1 << 20).double() - 127.5
    correlation = (x[:-shift] * x[shift:]).mean() / x.square().mean()
    assert abs(correlation) < 5 / 2**10  # 5 deviations


@pytest.mark.parametrize("shape", [(3,), (7, 5), (0,), (8, 8)])
def test_shapes(shape):
    assert random_bytes(*shape).shape == shape
    assert random_bytes(*shape).dtype == torch.uint8


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


def test_gradient_is_the_mask():
    x = torch.randn(50, 50, dtype=torch.float64, requires_grad=True)
    y = Dropout(0.3).train()(x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(y, x * grad)


def test_off_when_it_should_be():
    x = torch.randn(5)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0).train()(x), x)
    assert isinstance(Dropout(0.5), nn.Dropout)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_type_is_kept(dtype):
    assert Dropout(0.5).train()(torch.ones(9, dtype=dtype)).dtype == dtype


def test_extremes_stay_finite():
    assert Dropout(0.9999).train()(torch.ones(1000)).isfinite().all()
    assert kept_values(0.0) == 256

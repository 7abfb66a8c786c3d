import pytest
import torch

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

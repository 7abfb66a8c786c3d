import pytest
import torch
from torch.nn import functional as F

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

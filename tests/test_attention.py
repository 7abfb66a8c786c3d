import pytest
import torch

from chargpt import attention
from chargpt.attention import CPUAttention, causal_attention
from chargpt.dropout import kept_values, random_bytes

B, N_HEAD, T, HEAD_SIZE = 5, 3, 16, 8


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shape = (3, B, N_HEAD, T, HEAD_SIZE)
    return [x.to(dtype).requires_grad_() for x in torch.randn(shape, generator=generator, dtype=torch.float64)]


def plain(q, k, v, mask=None):
    """The lecture's lines, with the dropout mask (0 or the scale) as an argument."""
    T, S = q.shape[-2], k.shape[-2]
    wei = q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5
    wei = wei.masked_fill(torch.ones(T, S).tril(S - T) == 0, float("-inf")).softmax(-1)
    return (wei if mask is None else wei * mask) @ v


@pytest.mark.parametrize("at_once", [1, 2 * N_HEAD * T * T, 1 << 30])
@pytest.mark.parametrize("dropout", [0.0, 0.2, 0.9])
def test_same_mask_same_outputs_and_gradients(at_once, dropout, monkeypatch):
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", at_once)
    torch.manual_seed(1)
    kept = kept_values(dropout)
    noise = random_bytes(B * N_HEAD, T, T) if dropout else None
    mask = (noise.view(B, N_HEAD, T, T) < kept).double() * (256 / kept) if dropout else None
    ours, theirs = inputs(), inputs()
    out, expected = CPUAttention.apply(*ours, noise, kept), plain(*theirs, mask)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for a, b in zip(torch.autograd.grad(out, ours, grad), torch.autograd.grad(expected, theirs, grad), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_low_precision_is_as_good_as_the_plain_formula_in_it(dtype):
    exact = plain(*inputs())
    ours = CPUAttention.apply(*inputs(dtype), None, 256)
    allowed = 1.5 * (plain(*inputs(dtype)).double() - exact).abs().max() + 1e-7
    assert ours.dtype == dtype
    assert (ours.double() - exact).abs().max() <= allowed


def test_which_path():
    """Training with dropout takes ours, validation and what has no dropout the fused kernel; all agree."""
    q, k, v = inputs()
    assert "CPUAttention" in type(causal_attention(q, k, v, 0.2).grad_fn).__name__ or (
        "CPUAttention" in str(causal_attention(q, k, v, 0.2).grad_fn.next_functions)
    )
    torch.testing.assert_close(causal_attention(q, k, v), plain(q, k, v))
    with torch.no_grad():
        b = [x.bfloat16() for x in (q, k, v)]
        torch.testing.assert_close(causal_attention(*b).double(), plain(q, k, v), rtol=0.05, atol=0.02)


@pytest.mark.parametrize("new", [1, 3])
def test_queries_at_the_end(new):
    q, k, v = inputs()
    torch.testing.assert_close(causal_attention(q[:, :, -new:], k, v), plain(q, k, v)[:, :, -new:])


def test_reproducible_from_the_seed():
    def draw(seed):
        torch.manual_seed(seed)
        return causal_attention(*inputs(), 0.5)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))

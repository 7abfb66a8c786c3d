import pytest
import torch

from chargpt import attention
from chargpt.attention import CPUAttention, cached_attention, causal_attention
from chargpt.dropout import kept_values, random_bytes

B, N_HEAD, T, HEAD_SIZE = 5, 3, 16, 8


def inputs(dtype=torch.float64, T=T):
    """Queries, keys and values, (3, B, N_HEAD, T, HEAD_SIZE), laid out as the model does."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(B, T, 3, N_HEAD, HEAD_SIZE, generator=generator, dtype=torch.float64)
    return qkv.permute(2, 0, 3, 1, 4).to(dtype).requires_grad_()


def plain(q, k, v, mask=None):
    """The lecture's lines, with the dropout mask (0 or the scale) as an argument."""
    T, S = q.shape[-2], k.shape[-2]
    wei = q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5
    wei = wei.masked_fill(torch.ones(T, S).tril(S - T) == 0, float("-inf")).softmax(-1)
    return (wei if mask is None else wei * mask) @ v


@pytest.mark.parametrize("rows", [1, 6, 8, 64])
@pytest.mark.parametrize("dropout", [0.0, 0.2, 0.9])
def test_same_mask_same_outputs_and_gradients(rows, dropout, monkeypatch):
    monkeypatch.setattr(attention, "ROWS", rows)
    torch.manual_seed(1)
    kept = kept_values(dropout)
    noise = random_bytes(B * N_HEAD, T, T)
    mask = (noise.view(B, N_HEAD, T, T) < kept).double() * (256 / kept)
    blocks = [noise[:, start : start + rows, : start + rows] for start in range(0, T, rows)] if dropout else None
    ours, theirs = inputs(), inputs()
    out, expected = CPUAttention.apply(ours, blocks, kept), plain(*theirs, mask if dropout else None)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (mine,), (right,) = torch.autograd.grad(out, ours, grad), torch.autograd.grad(expected, theirs, grad)
    torch.testing.assert_close(mine, right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("length", [T, 640])  # ten blocks, whose parts of the gradients are added up
def test_low_precision_is_as_good_as_the_plain_formula_in_it(dtype, length):
    grad = torch.randn(B, N_HEAD, length, HEAD_SIZE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def results(function, dtype):
        x = inputs(dtype, length)
        out = function(x)
        return out, *torch.autograd.grad(out, x, grad.to(dtype))[0]

    exact = results(lambda x: plain(*x), torch.float64)
    theirs = results(lambda x: plain(*x), dtype)
    ours = results(lambda x: CPUAttention.apply(x, None, 256), dtype)
    for mine, other, right in zip(ours, theirs, exact, strict=True):
        assert mine.dtype == dtype
        assert (mine.double() - right).norm() <= 1.5 * (other.double() - right).norm()


def test_which_path():
    """Training with dropout takes ours, validation and what has no dropout the fused kernel; all agree."""
    qkv = inputs()
    assert "CPUAttention" in causal_attention(qkv, 0.2).grad_fn.name()
    assert "CPUAttention" not in causal_attention(qkv).grad_fn.name()
    torch.testing.assert_close(causal_attention(qkv), plain(*qkv))
    with torch.no_grad():
        assert causal_attention(qkv, 0.2).isfinite().all()
        torch.testing.assert_close(causal_attention(qkv.bfloat16()).double(), plain(*qkv), rtol=0.05, atol=0.02)


@pytest.mark.parametrize("new", [1, 3, T])
def test_queries_at_the_end(new):
    q, k, v = inputs()
    torch.testing.assert_close(cached_attention(q[:, :, -new:], k, v), plain(q, k, v)[:, :, -new:])


def test_reproducible_from_the_seed():
    def draw(seed):
        torch.manual_seed(seed)
        return causal_attention(inputs(), 0.5)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))

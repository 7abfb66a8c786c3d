import pytest
import torch
from helpers import plain_attention, random_qkv

from chargpt.attention import causal_attention, rotary_turns, rotate

T = 16


def test_every_path_is_the_formula():
    """Training on a CPU with dropout or in bf16 takes the kernel in `chargpt.kernels`; all else PyTorch's."""
    qkv = random_qkv(T)
    for x, dropout, is_ours in ((qkv, 0.2, True), (qkv.bfloat16(), 0.0, True), (qkv, 0.0, False)):
        assert ("CPUAttention" in causal_attention(x, dropout).grad_fn.name()) is is_ours
    assert "CPUAttention" not in causal_attention(qkv.to("meta"), 0.2).grad_fn.name()
    torch.testing.assert_close(causal_attention(qkv), plain_attention(*qkv))
    with torch.no_grad():
        assert causal_attention(qkv, 0.2).isfinite().all()
        low = causal_attention(qkv.bfloat16())
        torch.testing.assert_close(low.double(), plain_attention(*qkv), rtol=0.05, atol=0.02)


def turned_as_the_paper_does(x):
    """Pair j at position p by the matrix of the angle p * 10000 ** (-2 j / head_size)."""
    out = torch.empty_like(x)
    for p in range(x.shape[1]):
        for j in range(x.shape[-1] // 2):
            angle = torch.tensor(p * 10_000 ** (-2 * j / x.shape[-1]), dtype=x.dtype)
            matrix = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
            out[:, p, ..., 2 * j : 2 * j + 2] = x[:, p, ..., 2 * j : 2 * j + 2] @ matrix.T
    return out


@pytest.mark.parametrize("compiled", [False, True])
def test_queries_and_keys_turn_and_values_stay(compiled, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiled)
    q, k, v = (x.transpose(1, 2) for x in random_qkv(T).detach())  # (5, T, 3, 8) each
    turned = rotate(torch.stack([q, k, v], 2), rotary_turns(T, 8, q.device))
    expected = torch.stack([turned_as_the_paper_does(q), turned_as_the_paper_does(k), v], 2)
    torch.testing.assert_close(turned, expected, rtol=1e-5, atol=1e-5)


def test_turns_do_not_depend_on_their_first_use():
    """Neither on the default dtype then, as Lightning sets it for bf16-true, nor on inference mode."""
    device, before = torch.device("cpu"), torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.inference_mode():
            turns = rotary_turns(31, 8, device)  # a length that nothing else asks for
    finally:
        torch.set_default_dtype(before)
    assert turns.dtype == torch.float32
    x = torch.ones(1, 31, 3, 1, 8, dtype=torch.float64, requires_grad=True)
    turned = rotate(x, rotary_turns(31, 8, device))
    assert turned.dtype == torch.float64
    turned.sum().backward()
    assert x.grad is not None

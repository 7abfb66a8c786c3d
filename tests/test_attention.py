import pytest
import torch
from helpers import plain_attention, random_qkv

from chargpt.attention import KVCache, LayerCache, causal_attention, rotary_turns, rotate
from chargpt.errors import UserError

T = 16


def test_which_path():
    """Training with dropout takes ours, validation and what has no dropout the fused kernel; all agree."""
    qkv = random_qkv(T)
    assert "CPUAttention" in causal_attention(qkv, 0.2).grad_fn.name()
    assert "CPUAttention" not in causal_attention(qkv).grad_fn.name()
    torch.testing.assert_close(causal_attention(qkv), plain_attention(*qkv))
    with torch.no_grad():
        assert causal_attention(qkv, 0.2).isfinite().all()
        low = causal_attention(qkv.bfloat16())
        torch.testing.assert_close(low.double(), plain_attention(*qkv), rtol=0.05, atol=0.02)


def layer(block_size):
    return LayerCache(torch.zeros(2, 5, 3, block_size, 8, dtype=torch.float64))


@pytest.mark.parametrize("new", [1, 3, T])
@pytest.mark.parametrize("block_size", [T, T + 4])
def test_what_is_read_attends_to_all_before_it(new, block_size):
    qkv = random_qkv(T).detach()
    cache = layer(block_size)
    cache.extend(qkv[1:, :, :, :-new])
    out = cache.attend(qkv[:, :, :, -new:])
    torch.testing.assert_close(out, plain_attention(*qkv)[:, :, -new:])
    assert cache.length == T


def test_at_a_fixed_position_the_same_without_a_look_at_the_length():
    """What is not filled, here with numbers that would show, is masked."""
    qkv = random_qkv(T).detach()
    cache = layer(T + 4)
    cache.extend(qkv[1:, :, :, :5])
    cache.keys_and_values[:, :, :, 5:] = 1e3
    cache.position = torch.zeros(1, dtype=torch.int64)
    for n in range(5, T):
        cache.position.fill_(n)
        out = cache.attend(qkv[:, :, :, n : n + 1])
        torch.testing.assert_close(out, plain_attention(*qkv)[:, :, n : n + 1])


@pytest.fixture
def cache():
    return KVCache((2, 1, 3, 10, 8), torch.device("cpu"), torch.float64)


def read(cache, T, B=1):
    """What a model does: announce, then put keys and values into every layer."""
    positions = cache.advance(T)
    for each in cache.layers:
        each.extend(torch.ones(2, B, 3, T, 8, dtype=torch.float64))
    return positions


def test_positions_count_up_and_begin_again(cache):
    assert [read(cache, T).tolist() for T in (3, 1, 6)] == [[0, 1, 2], [3], [4, 5, 6, 7, 8, 9]]
    assert (cache.length, [each.length for each in cache.layers]) == (10, [10, 10])
    cache.clear()
    assert cache.length == 0
    assert read(cache, 2).tolist() == [0, 1]
    assert [each.length for each in cache.layers] == [2, 2]


def test_too_long_is_refused_before_anything_is_read(cache):
    read(cache, 8)
    with pytest.raises(UserError, match="11 characters is longer than block_size=10"):
        cache.advance(3)
    assert read(cache, 2).tolist() == [8, 9]
    position = torch.tensor([10])
    cache.fix(position)
    with pytest.raises(UserError, match="11 characters is longer than block_size=10"):
        cache.advance(1)


def test_a_fixed_position_until_it_is_ended(cache):
    read(cache, 3)
    position = torch.tensor([3])
    cache.fix(position)
    assert read(cache, 1) is position
    assert all(each.position is position for each in cache.layers)
    assert cache.layers[0].keys_and_values[:, :, :, :4].all()
    assert not cache.layers[0].keys_and_values[:, :, :, 4:].any()
    cache.fix(None)
    assert read(cache, 2).tolist() == [4, 5]
    assert cache.layers[0].keys_and_values[:, :, :, :6].all()


def test_one_sequence_becomes_many(cache):
    read(cache, 3)
    cache.expand(4)
    assert cache.batch_size == 4
    read(cache, 1, B=4)
    for each in cache.layers:
        assert each.keys_and_values.shape == (2, 4, 3, 10, 8)
        assert each.keys_and_values[:, :, :, :4].all()


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
    q, k, v = qkv = random_qkv(T).detach()
    qkv = qkv.permute(1, 3, 0, 2, 4)  # (5, T, 3, 3, 8)
    turned = rotate(qkv, rotary_turns(T, 8, qkv.device))
    expected = [turned_as_the_paper_does(q.transpose(1, 2)), turned_as_the_paper_does(k.transpose(1, 2))]
    torch.testing.assert_close(turned, torch.stack([*expected, v.transpose(1, 2)], 2), rtol=1e-5, atol=1e-5)
    assert torch.equal(rotate(qkv[:, :, 1:], rotary_turns(T, 8, qkv.device)), turned[:, :, 1:])


def test_turns_do_not_depend_on_who_asked_first():
    """Not on its default type of numbers, as Lightning sets it for bf16-true, nor on whether it needed gradients."""
    device, before = torch.device("cpu"), torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.inference_mode():
            turns = rotary_turns(31, 8, device)  # a length that nothing else asks for
    finally:
        torch.set_default_dtype(before)
    assert turns.dtype == torch.float32
    x = torch.ones(1, 31, 3, 1, 8, requires_grad=True)
    rotate(x, rotary_turns(31, 8, device)).sum().backward()
    assert x.grad is not None


def test_only_the_distance_counts():
    """The same query and key, further on in the text, have the same product."""
    turns = rotary_turns(T, 8, torch.device("cpu"))
    qkv = torch.randn(1, 1, 3, 1, 8, dtype=torch.float64).expand(1, T, 3, 1, 8)
    q, k, _ = rotate(qkv, turns)[0, :, :, 0].unbind(1)
    products = q @ k.T
    for distance in range(1, T):
        along = products.diagonal(-distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=1e-5, atol=1e-5)
    assert products[:, 0].unique().numel() == T


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_turning_keeps_the_type(dtype):
    x = torch.ones(1, 3, 3, 1, 8, dtype=dtype)
    assert rotate(x, rotary_turns(3, 8, x.device)).dtype == dtype

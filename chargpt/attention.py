"""Causal attention, rotary positions, and the cache of keys and values that makes decoding fast."""

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from chargpt.kernels.cpu_attention import causal_attention_on_cpu, takes_over

ROTARY_BASE = 10_000


def causal_attention(qkv: Tensor, dropout: float = 0.0) -> Tensor:
    """Each character attends to itself and those before: softmax(q k^T / sqrt(head_size)) v.

    Args:
        qkv: (3, B, n_head, T, head_size): queries, keys and values.
        dropout: probability that an attention weight is dropped.

    Returns:
        (B, n_head, T, head_size).
    """
    if takes_over(qkv, dropout):
        return causal_attention_on_cpu(qkv, dropout)
    q, k, v = qkv
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)


def rotate(qkv: Tensor, turns: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021): pairs of channels of queries and keys turn with their position, so that the
    product of two depends on how far apart they are. Values stay.

    Args:
        qkv: (B, T, 3, n_head, head_size).
        turns: of the T positions, from `rotary_turns`.
    """
    pairs = qkv.to(torch.promote_types(qkv.dtype, turns.dtype)).unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # torch.compile has no code for complex numbers
        (a, b), (cos, sin) = pairs.unbind(-1), turns.unbind(-1)
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], -1)
    else:  # one pass over the numbers
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turns))
    return turned.flatten(-2).to(qkv.dtype)


def rotary_turns(length: int, head_size: int, device: torch.device) -> Tensor:
    """Cosine and sine of the angle that each position below `length` turns each pair of channels by:
    (length, 3, 1, head_size / 2, 2). Values get the angle 0, since splitting them off costs more."""
    compute = _turns if torch.compiler.is_compiling() else _cached_turns
    return compute(length, head_size, device)


def _turns(length: int, head_size: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # the cached ones serve training, too
        speeds = ROTARY_BASE ** -(torch.arange(0, head_size, 2, dtype=torch.float32, device=device) / head_size)
        angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), speeds)
        angles = torch.stack([angles, angles, torch.zeros_like(angles)], 1)
        return torch.stack([angles.cos(), angles.sin()], -1)[:, :, None]


_cached_turns = functools.lru_cache(maxsize=16)(_turns)


class KVCache:
    """Keys and values of the characters read so far, for each layer; allocated once.

    Args:
        shape: (n_layer, B, n_head, length, head_size), `length` being the most characters that fit.
        shifted: with `token_shift`, the channels that each half of a layer takes from the previous character.

    Attributes:
        length: characters read so far.
        previous: those channels of the last character read, (n_layer, 2, B, 1, shifted); zeros at first.
    """

    def __init__(self, shape: tuple[int, int, int, int, int], shifted: int, like: Tensor):
        n_layer, B, *sizes = shape
        self.keys_and_values = like.new_zeros(n_layer, 2, B, *sizes, requires_grad=False)
        self.previous = like.new_zeros(n_layer, 2, B, 1, shifted, requires_grad=False)
        self.length = 0

    def attend(self, layer: int, qkv: Tensor, last: int = 0) -> Tensor:
        """Store the keys and values of T more characters, each of which attends to itself and to all before it.

        `length` stays: the model advances it once every layer has stored these characters.

        Args:
            qkv: (3, B, n_head, T, head_size).
            last: if not 0, only so many of the T are needed.

        Returns:
            (B, n_head, T or last, head_size).
        """
        start, end = self.length, self.length + qkv.shape[3]
        stored = self.keys_and_values[layer]
        stored[:, :, :, start:end] = qkv[1:]
        q, (k, v) = qkv[0, :, :, -last:], stored[:, :, :, :end]
        T, S = q.shape[2], end
        if T == S:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mask = None if T == 1 else torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def clear(self) -> None:
        """Forget all characters."""
        self.length = 0
        self.previous.zero_()

    def expand(self, batch_size: int) -> None:
        """From one sequence to `batch_size` that begin with it."""
        self.keys_and_values = self.keys_and_values.expand(-1, -1, batch_size, -1, -1, -1).contiguous()
        self.previous = self.previous.expand(-1, -1, batch_size, -1, -1).contiguous()

"""Causal attention, and the cache of keys and values that makes generation quick."""

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from chargpt.errors import UserError
from chargpt.kernels.cpu_attention import causal_attention_on_cpu, takes_over


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


ROTARY_BASE = 10_000


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021): pairs of channels of queries and keys turn with their position, so that the
    product of two depends on how far apart they are. Values stay.

    Args:
        x: (B, T, n, n_head, head_size): queries, keys and values, where n is 3; keys and values, where it is 2.
        turns: those of the T positions, from `rotary_turns`.
    """
    turns = turns[:, -x.shape[2] :]  # the last n of the three: (T, n, 1, head_size / 2, 2)
    exact = x.to(torch.promote_types(x.dtype, turns.dtype))
    pairs = exact.unflatten(-1, (-1, 2))  # (B, T, n, n_head, head_size / 2, 2)
    if torch.compiler.is_compiling():  # which has no code for complex numbers
        (a, b), (cos, sin) = pairs.unbind(-1), turns.unbind(-1)
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], -1)
    else:  # one pass over the numbers
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(turns))
    return turned.flatten(-2).to(x.dtype)


def rotary_turns(length: int, head_size: int, device: torch.device) -> Tensor:
    """By how much positions below `length` turn each pair of channels: (length, 3, 1, head_size / 2, 2), for queries,
    keys and values the cosine and the sine of the angle, which is 0 for values."""
    compute = _turns if torch.compiler.is_compiling() else _cached_turns
    return compute(length, head_size, device)


def _turns(length: int, head_size: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # what is kept serves training, too
        speeds = ROTARY_BASE ** -(torch.arange(0, head_size, 2, dtype=torch.float32, device=device) / head_size)
        angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), speeds)
        angles = torch.stack([angles, angles, torch.zeros_like(angles)], 1)
        return torch.stack([angles.cos(), angles.sin()], -1)[:, :, None]


_cached_turns = functools.lru_cache(maxsize=16)(_turns)


class LayerCache:
    """What one layer keeps of the characters read so far: their keys and values and, with `token_shift`, some channels.

    Args:
        keys_and_values: room for them, (2, B, n_head, block_size, head_size).
        shifted: the channels that each half of the layer takes from the character before.
    """

    def __init__(self, keys_and_values: Tensor, shifted: int = 0):
        _, B, _, block_size, _ = keys_and_values.shape
        self.keys_and_values = keys_and_values  # of which `length` are filled
        self.channels = keys_and_values.new_zeros(2, B, block_size + 1, shifted)  # the first has none before it
        self.length = 0
        self.position: Tensor | None = None  # see `KVCache.fix`

    def shift(self, x: Tensor, half: int) -> Tensor:
        """Give the next characters' (B, T, C) the first channels of the one before each.

        Args:
            half: 0 before attention, whose keys and values are then added, and 1 after it.
        """
        channels, T = self.channels[half], x.shape[1]
        if not channels.shape[-1]:
            return x
        own, others = x.split([channels.shape[-1], x.shape[-1] - channels.shape[-1]], -1)
        if self.position is not None:
            channels.index_copy_(1, self.position + 1, own)
            return torch.cat([channels.index_select(1, self.position), others], -1)
        start = self.length - half * T  # attention, between the halves, has added T
        channels[:, start + 1 : start + 1 + T] = own
        return torch.cat([channels[:, start : start + T], others], -1)

    @property
    def nbytes(self) -> int:
        """The memory that it takes."""
        return self.keys_and_values.nbytes + self.channels.nbytes

    def turns(self, T: int) -> Tensor:
        """The rotary turns of the next T characters."""
        return self._turns[self.length : self.length + T] if self.position is None else self._turns[self.position]

    @functools.cached_property
    def _turns(self) -> Tensor:  # held here, too: a captured step reads them where they lie
        length, head_size = self.keys_and_values.shape[3:]
        return rotary_turns(length, head_size, self.keys_and_values.device)

    def extend(self, kv: Tensor) -> tuple[Tensor, Tensor | None]:
        """Add the next characters' keys and values, (2, B, n_head, T, head_size).

        Returns:
            Those of all characters up to these, (2, B, n_head, S, head_size), and a mask of the ones to attend to,
            (1, S), or None for all.
        """
        if self.position is not None:
            all_positions = torch.arange(self.keys_and_values.shape[3], device=kv.device)
            return self.keys_and_values.index_copy_(3, self.position, kv), all_positions[None] <= self.position
        start, self.length = self.length, self.length + kv.shape[3]
        self.keys_and_values[:, :, :, start : self.length] = kv
        return self.keys_and_values[:, :, :, : self.length], None

    def attend(self, qkv: Tensor) -> Tensor:
        """Read the next characters: each attends to all before it, those read earlier included, and to itself.

        Args:
            qkv: (3, B, n_head, T, head_size): queries, keys and values.

        Returns:
            (B, n_head, T, head_size).
        """
        (keys, values), mask = self.extend(qkv[1:])
        q, T, S = qkv[0], qkv.shape[3], keys.shape[2]
        if T == S:
            return F.scaled_dot_product_attention(q, keys, values, is_causal=True)
        if T > 1:
            mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)


class KVCache:
    """The keys and values of the characters read so far, for every layer; allocated once.

    Args:
        shape: (n_layer, B, n_head, block_size, head_size).
        shifted: as a `LayerCache` has it.

    Attributes:
        batch_size: sequences (B).
        length: characters read so far.
        layers: a `LayerCache` for each layer.
    """

    def __init__(
        self, shape: tuple[int, int, int, int, int], device: torch.device, dtype: torch.dtype, shifted: int = 0
    ):
        n_layer, *sizes = shape
        self.batch_size, self.block_size, self.device = shape[1], shape[3], device
        self.length = 0
        self.layers = [LayerCache(torch.zeros(2, *sizes, device=device, dtype=dtype), shifted) for _ in range(n_layer)]
        self.position: Tensor | None = None

    def advance(self, T: int) -> Tensor:
        """Announce that T characters more are read.

        Returns:
            Their positions, (T,).

        Raises:
            UserError: they do not fit in.
        """
        start, end = self.length, self.length + T
        if end > self.block_size:
            raise UserError(f"a context of {end} characters is longer than block_size={self.block_size}")
        self.length = end
        for layer in self.layers:
            layer.length = start
        return torch.arange(start, end, device=self.device) if self.position is None else self.position

    def fix(self, position: Tensor | None) -> None:
        """From here on the next character, one at a time, stands at `position`, (1,), a number on the device; None ends
        that.

        Every read is then made of the same operations on the same memory, as a captured one must be: all of the cache
        is attended to, and a mask leaves out what is not filled.
        """
        self.position = position
        for layer in self.layers:
            layer.position = position

    def clear(self) -> None:
        """Forget what was read."""
        self.length = 0

    def expand(self, batch_size: int) -> None:
        """From one sequence to `batch_size` that begin with it."""
        self.batch_size = batch_size
        for layer in self.layers:
            layer.keys_and_values = layer.keys_and_values.repeat(1, batch_size, 1, 1, 1)
            layer.channels = layer.channels.repeat(1, batch_size, 1, 1)

"""Causal attention, and the cache of keys and values that makes generation quick."""

import torch
from torch import Tensor
from torch.nn import functional as F

from chargpt.errors import UserError
from chargpt.kernels.attention import causal_attention_on_cpu, takes_over


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


class LayerCache:
    """The keys and values that one layer has computed for the characters read so far."""

    def __init__(self, keys_and_values: Tensor):
        self.keys_and_values = keys_and_values  # (2, B, n_head, block_size, head_size), of which `length` are filled
        self.length = 0
        self.position: Tensor | None = None  # see `KVCache.fix`

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

    Attributes:
        batch_size: sequences (B).
        length: characters read so far.
        layers: a `LayerCache` for each layer.
    """

    def __init__(self, shape: tuple[int, int, int, int, int], device: torch.device, dtype: torch.dtype):
        n_layer, *sizes = shape
        self.batch_size, self.block_size, self.device = shape[1], shape[3], device
        self.length = 0
        self.layers = [LayerCache(torch.zeros(2, *sizes, device=device, dtype=dtype)) for _ in range(n_layer)]
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

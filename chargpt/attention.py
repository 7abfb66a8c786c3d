"""Causal attention, and the cache that makes generation quick."""

import torch
from torch import Tensor
from torch.nn import functional as F


def causal_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """Each query attends to the keys at its own position and before; the last query stands at the last key.

    softmax(q k^T / sqrt(head_size)) v, with dropout on the attention weights.

    Args:
        q: (B, n_head, T, head_size).
        k, v: (B, n_head, S, head_size) with S >= T: the S - T keys more are those of earlier characters.
        dropout: probability that an attention weight is dropped.

    Returns:
        (B, n_head, T, head_size).
    """
    T, S = q.shape[-2], k.shape[-2]
    if T == S:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
    mask = None if T == 1 else torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


class KVCache:
    """The keys and values of the characters read so far, for every layer; allocated once.

    Args:
        shape: (n_layer, B, n_head, block_size, head_size).
    """

    def __init__(self, shape: tuple[int, int, int, int, int], device: torch.device, dtype: torch.dtype):
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0  # characters read so far; `GPT.forward` advances it

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write the next characters' keys and values, (B, n_head, T, head_size) each, and return all up to them."""
        end = self.length + k.shape[-2]
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

"""Causal attention, the fastest exact way on each device, and the cache that makes generation quick."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from chargpt.dropout import kept_values, random_bytes

SCORES_AT_ONCE = 3 << 19  # attention scores a CPU works on at a time: 3 MiB of bf16, which its caches hold


def causal_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """Each query attends to the keys at its own position and before; the last query stands at the last key.

    softmax(q k^T / sqrt(head_size)) v, with dropout on the attention weights.

    Args:
        q: (B, n_head, T, head_size).
        k, v: (B, n_head, S, head_size) with S >= T: the S - T keys more are those of earlier characters.
        dropout: probability that an attention weight is dropped; on a CPU in steps of 1/256, see `chargpt.dropout`.

    Returns:
        (B, n_head, T, head_size).
    """
    B, n_head, T, _ = q.shape
    S = k.shape[-2]
    if T == S:
        # PyTorch's fused kernel has no dropout on CPUs, and does not use their bf16 units to the full.
        if q.device.type == "cpu" and torch.is_grad_enabled() and (dropout > 0 or q.dtype == torch.bfloat16):
            noise = random_bytes(B * n_head, T, T) if dropout > 0 else None
            return CPUAttention.apply(q, k, v, noise, kept_values(dropout))
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
    mask = None if T == 1 else torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


class CPUAttention(torch.autograd.Function):
    """The formula written out for training on CPUs, a few sequences at a time so that all stays in cache.

    `noise`, (B * n_head, T, T) uint8 or None, decides what is dropped: a weight stays where its byte is below `kept`,
    and is scaled by 256 / kept. The attention weights (as they were before dropout) and the noise are saved for the
    backward pass. The scale is applied to the values, which are fewer than the weights.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, noise: Tensor | None, kept: int) -> Tensor:
        B, n_head, T, head_size = q.shape
        weights = q.new_empty(B * n_head, T, T)
        out = q.new_empty(B, T, n_head, head_size)
        future = q.new_full((T, T), float("-inf")).triu_(1)
        for part, heads, dropped in _parts(q):
            Q, K, V = (x[part].reshape(-1, T, head_size) for x in (q, k, v))  # (heads, T, head_size)
            W = weights[heads]
            torch.baddbmm(future, Q, K.transpose(1, 2), alpha=head_size**-0.5, out=W)
            torch.softmax(W, -1, out=W)
            if noise is not None:
                torch.lt(noise[heads], kept, out=dropped)
                W, V = dropped.mul_(W), V * (256 / kept)
            out[part] = torch.bmm(W, V).view(-1, n_head, T, head_size).transpose(1, 2)
        ctx.save_for_backward(q, k, v, weights, noise)
        ctx.kept = kept
        return out.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, noise = ctx.saved_tensors
        T, head_size = q.shape[-2:]
        grads = [torch.empty_like(x) for x in (q, k, v)]
        for part, heads, dropped in _parts(q):
            Q, K, V, G = (x[part].reshape(-1, T, head_size) for x in (q, k, v, grad))
            W = weights[heads]
            if noise is None:
                D = torch.bmm(G, V.transpose(1, 2))  # gradient of the weights
                used = W
            else:
                torch.lt(noise[heads], ctx.kept, out=dropped)
                G = G * (256 / ctx.kept)
                D = torch.bmm(G, V.transpose(1, 2)).mul_(dropped)
                used = dropped.mul_(W)
            # The scores' gradient; -inf scores have weight 0, so the future's is 0.
            D = torch._softmax_backward_data(D, W, -1, W.dtype).mul_(head_size**-0.5)
            products = (torch.bmm(D, K), torch.bmm(D.transpose(1, 2), Q), torch.bmm(used.transpose(1, 2), G))
            for whole, product in zip(grads, products, strict=True):
                whole[part] = product.view_as(whole[part])
        return *grads, None, None


def _parts(q: Tensor):
    """Slices of the sequences and of all their heads, with scratch space for the scores of one slice."""
    B, n_head, T, _ = q.shape
    step = min(B, max(1, SCORES_AT_ONCE // (n_head * T * T)))
    scratch = q.new_empty(step * n_head, T, T)
    for start in range(0, B, step):
        stop = min(start + step, B)
        yield slice(start, stop), slice(start * n_head, stop * n_head), scratch[: (stop - start) * n_head]


class KVCache:
    """The keys and values of the characters read so far, for every layer; allocated once.

    Args:
        shape: (n_layer, B, n_head, block_size, head_size).
    """

    def __init__(self, shape: tuple[int, int, int, int, int], device: torch.device, dtype: torch.dtype):
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0  # characters read so far; `GPT.forward` advances it

    def expand(self, batch_size: int) -> None:
        """From one sequence to `batch_size` that begin with it."""
        if batch_size > 1:
            self.keys = self.keys.repeat(1, batch_size, 1, 1, 1)
            self.values = self.values.repeat(1, batch_size, 1, 1, 1)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write the next characters' keys and values, (B, n_head, T, head_size) each, and return all up to them."""
        end = self.length + k.shape[-2]
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

"""Causal attention, the fastest exact way on each device, and the cache that makes generation quick."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from chargpt.dropout import kept_values, random_bytes

ROWS = 64  # queries a CPU works on at a time: each such block ends at its own last key, and its scores stay in cache


def causal_attention(qkv: Tensor, dropout: float = 0.0) -> Tensor:
    """Each character attends to itself and those before: softmax(q k^T / sqrt(head_size)) v.

    Args:
        qkv: (3, B, n_head, T, head_size): queries, keys and values.
        dropout: probability that an attention weight is dropped; on a CPU in steps of 1/256, see `chargpt.dropout`.

    Returns:
        (B, n_head, T, head_size).
    """
    # PyTorch's fused kernel has no dropout on CPUs, and does not use their bf16 units to the full.
    trains_on_cpu = qkv.is_cpu and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if trains_on_cpu and (dropout > 0 or qkv.dtype == torch.bfloat16):
        _, B, n_head, T, _ = qkv.shape
        noise = [random_bytes(B * n_head, end - start, end) for start, end in _blocks(T)] if dropout > 0 else None
        return CPUAttention.apply(qkv, noise, kept_values(dropout))
    q, k, v = qkv
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)


def _blocks(T: int) -> list[tuple[int, int]]:
    """Where each block of queries starts and ends."""
    return [(start, min(start + ROWS, T)) for start in range(0, T, ROWS)]


class CPUAttention(torch.autograd.Function):
    """The formula written out for training on CPUs, in blocks of queries that see no key behind their last one.

    `noise`, for each block (B * n_head, queries, keys) uint8, or None, decides what is dropped: a weight stays where
    its byte is below `kept`, and is scaled by 256 / kept. The attention weights (as they were before dropout) and the
    noise are kept for the backward pass. Scales are applied to the smaller side of a product: head_size, not keys.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, noise: list[Tensor] | None, kept: int) -> Tensor:
        _, B, n_head, T, head_size = qkv.shape
        Q, K, V = (x.reshape(-1, T, head_size) for x in qkv)  # (B * n_head, T, head_size)
        out = qkv.new_empty(B, T, n_head, head_size)
        future = qkv.new_full((ROWS, ROWS), float("-inf")).triu_(1)
        weights = []
        for n, (start, end) in enumerate(_blocks(T)):
            W = torch.bmm(Q[:, start:end] * head_size**-0.5, K[:, :end].transpose(1, 2))  # (B * n_head, queries, keys)
            W[:, :, start:] += future[: end - start, : end - start]
            torch.softmax(W, -1, out=W)
            weights.append(W)
            if noise is not None:
                W = _stays(noise[n], kept, W).mul_(W)
            found = torch.bmm(W, V[:, :end]).mul_(256 / kept)
            out[:, start:end] = found.view(B, n_head, -1, head_size).transpose(1, 2)
        ctx.save_for_backward(qkv)
        ctx.weights, ctx.noise, ctx.kept = weights, noise, kept
        return out.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (qkv,) = ctx.saved_tensors
        _, B, n_head, T, head_size = qkv.shape
        Q, K, V, G = (x.reshape(-1, T, head_size) for x in (*qkv, grad))
        dK, dV = torch.zeros_like(K), torch.zeros_like(V)
        grads = qkv.new_empty(B, T, 3, n_head, head_size).permute(2, 0, 3, 1, 4)  # of q, k and v
        for n, (start, end) in enumerate(_blocks(T)):
            W = used = ctx.weights[n]
            q, g = Q[:, start:end] * head_size**-0.5, G[:, start:end] * (256 / ctx.kept)
            D = torch.bmm(g, V[:, :end].transpose(1, 2))  # the gradient of the weights
            if ctx.noise is not None:
                used = _stays(ctx.noise[n], ctx.kept, W)
                D.mul_(used)
                used.mul_(W)
            D = torch._softmax_backward_data(D, W, -1, W.dtype)  # of the scores; 0 in the future, where weights are 0
            dQ = torch.bmm(D, K[:, :end]).mul_(head_size**-0.5)
            grads[0, :, :, start:end] = dQ.view(B, n_head, -1, head_size)
            dK[:, :end] += torch.bmm(D.transpose(1, 2), q)
            dV[:, :end] += torch.bmm(used.transpose(1, 2), g)
        grads[1], grads[2] = (x.view(B, n_head, T, head_size) for x in (dK, dV))
        return grads, None, None


def _stays(noise: Tensor, kept: int, like: Tensor) -> Tensor:
    """1 where a weight stays, 0 where it is dropped, in numbers of `like`'s type: booleans would multiply slowly."""
    return torch.lt(noise, kept, out=torch.empty_like(like))


def cached_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """The last T of S characters attend to all up to themselves.

    Args:
        q: (B, n_head, T, head_size).
        k, v: (B, n_head, S, head_size).
        mask: instead, what is attended to: true, of a shape that broadcasts to (B, n_head, T, S).

    Returns:
        (B, n_head, T, head_size).
    """
    T, S = q.shape[-2], k.shape[-2]
    if mask is None and T == S:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    if mask is None and T > 1:
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class KVCache:
    """The keys and values of the characters read so far, for every layer; allocated once.

    Args:
        shape: (n_layer, B, n_head, block_size, head_size).
    """

    def __init__(self, shape: tuple[int, int, int, int, int], device: torch.device, dtype: torch.dtype):
        n_layer, *one = shape
        self.layers = [torch.zeros(2, *one, device=device, dtype=dtype) for _ in range(n_layer)]  # keys and values
        self.length = 0  # characters read so far
        self.mask: Tensor | None = None  # for `cached_attention`; None: all that `extend` returns

    def positions(self, T: int) -> slice | Tensor:
        """Where the next T characters stand."""
        return slice(self.length, self.length + T)

    def advance(self, T: int) -> None:
        """All layers have read T characters more."""
        self.length += T

    def expand(self, batch_size: int) -> None:
        """From one sequence to `batch_size` that begin with it."""
        if batch_size > 1:
            self.layers = [layer.repeat(1, batch_size, 1, 1, 1) for layer in self.layers]

    def extend(self, layer: int, kv: Tensor) -> Tensor:
        """Write the next characters' keys and values, (2, B, n_head, T, head_size), and return all up to them."""
        end = self.length + kv.shape[-2]
        self.layers[layer][:, :, :, self.length : end] = kv
        return self.layers[layer][:, :, :, :end]

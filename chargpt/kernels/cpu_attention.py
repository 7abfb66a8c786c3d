"""Causal attention for training on CPUs: the formula written out in blocks that stay in the CPU's cache.

PyTorch's fused kernel has no dropout on CPUs, and does not use their bf16 units to the full.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from chargpt import kernels
from chargpt.kernels.layers import kept_values, random_bytes

ROWS = 64  # queries at a time: each such block ends at its own last key, and its scores stay in the cache


def takes_over(qkv: Tensor, dropout: float) -> bool:
    """Whether `causal_attention_on_cpu` is faster: in training on a CPU, with dropout or in bf16."""
    in_training = qkv.is_cpu and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return in_training and (dropout > 0 or qkv.dtype == torch.bfloat16)


def causal_attention_on_cpu(qkv: Tensor, dropout: float) -> Tensor:
    """As `chargpt.attention.causal_attention`, with `dropout` in steps of 1/256."""
    _, B, n_head, T, _ = qkv.shape
    noise = [random_bytes(B * n_head, end - start, end) for start, end in _blocks(T)] if dropout > 0 else None
    return CPUAttention.apply(qkv, noise, kept_values(dropout))


def _blocks(T: int) -> list[tuple[int, int]]:
    """Where each block of queries starts and ends."""
    return [(start, min(start + ROWS, T)) for start in range(0, T, ROWS)]


class CPUAttention(torch.autograd.Function):
    """Attention in blocks of queries, each with the keys up to its last query only.

    `noise`, for each block (B * n_head, queries, keys) uint8, or None, is the dropout: a weight stays where its byte is
    below `kept`, and is scaled by 256 / kept. The backward pass reads the attention weights before dropout and the
    noise. Scales multiply queries and outputs, which are smaller than the scores.
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
            D = _softmax_gradient(D, W)  # of the scores; 0 in the future, where weights are 0
            dQ = torch.bmm(D, K[:, :end]).mul_(head_size**-0.5)
            grads[0, :, :, start:end] = dQ.view(B, n_head, -1, head_size)
            dK[:, :end] += torch.bmm(D.transpose(1, 2), q)
            dV[:, :end] += torch.bmm(used.transpose(1, 2), g)
        grads[1], grads[2] = (x.view(B, n_head, T, head_size) for x in (dK, dV))
        return grads, None, None


def _stays(noise: Tensor, kept: int, like: Tensor) -> Tensor:
    """1 where a weight stays, 0 where it is dropped, in numbers of `like`'s type: booleans would multiply slowly."""
    return torch.lt(noise, kept, out=torch.empty_like(like))


def _softmax_gradient(grad: Tensor, softmax: Tensor) -> Tensor:
    """The gradient of a softmax's input, over the last dimension."""
    if kernels.softmax_gradient is not None:
        return kernels.softmax_gradient(grad, softmax, -1, softmax.dtype)
    return softmax * (grad - (grad * softmax).sum(-1, keepdim=True))

import copy
import math

import pytest
import torch

from chargpt.model import GPT, GPTConfig
from chargpt.optim import NEWTON_SCHULZ, MuonConfig, orthogonalized

SMALL = GPTConfig(block_size=8, n_layer=2, n_head=2, n_embd=16, dropout=0.0)


def plain_iteration(x, steps=5):
    """Jordan's, on a matrix whose longer side is its second."""
    a, b, c = NEWTON_SCHULZ
    x = x / x.norm()
    for _ in range(steps):
        x = a * x + (b * (x @ x.T) + c * (x @ x.T) @ (x @ x.T)) @ x
    return x


@pytest.mark.parametrize("condition", [10, 1e3])
@pytest.mark.parametrize("shape", [(16, 16), (16, 64), (64, 16)])
def test_it_is_the_plain_iteration(shape, condition):
    """Computed at least in single precision."""
    torch.manual_seed(0)
    u, values, vh = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    matrix = u * torch.logspace(0, -math.log10(condition), len(values), dtype=torch.float64) @ vh
    expected = plain_iteration(matrix) if shape[0] <= shape[1] else plain_iteration(matrix.T).T
    torch.testing.assert_close(orthogonalized(matrix[None])[0], expected)
    torch.testing.assert_close(
        orthogonalized(matrix[None].float())[0].double(), expected, atol=1e-6 * condition, rtol=1e-4
    )
    low = orthogonalized(matrix[None].bfloat16())[0]
    assert low.dtype == torch.bfloat16
    rounded = orthogonalized(matrix[None].bfloat16().float())[0]
    torch.testing.assert_close(low.float(), rounded, atol=1e-2, rtol=1e-2)


def gradients(net, seed):
    """As a closure that computes them and returns a loss."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return 3.0


def plain_step(net, means, moments, config, t, factor):
    """By the formulas, a matrix at a time."""
    lr, adamw_lr = config.lr * factor, config.adamw_lr * factor
    for name, weight in net.named_parameters():
        if name.startswith("blocks.") and weight.dim() == 2:
            means[name] = config.momentum * means.get(name, 0) + (1 - config.momentum) * weight.grad
            count = 3 if "qkv" in name else 1
            ahead = config.momentum * means[name] + (1 - config.momentum) * weight.grad
            for part, direction in zip(weight.data.chunk(count), ahead.chunk(count), strict=True):
                part *= 1 - lr * config.weight_decay
                part -= lr * math.sqrt(part.shape[0] / part.shape[1]) * orthogonalized(direction[None])[0]
            continue
        decay = config.weight_decay if name == "lm_head.weight" else 0.0
        (b1, b2), (m, v) = config.betas, moments.get(name, (0, 0))
        m, v = b1 * m + (1 - b1) * weight.grad, b2 * v + (1 - b2) * weight.grad**2
        moments[name] = m, v
        weight.data *= 1 - adamw_lr * decay
        weight.data -= adamw_lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + 1e-8)


def test_steps_follow_the_formulas():
    """With a state that is restored, and learning rates that are set in the groups afterwards, as by a schedule."""
    torch.manual_seed(0)
    config = MuonConfig(weight_decay=0.25)
    net = GPT(SMALL, 11)
    plain = GPT(SMALL, 11)
    plain.load_state_dict(net.state_dict())
    optimizer, means, moments = config.build(net), {}, {}
    for t, factor in ((1, 1.0), (2, 0.5), (3, 0.5)):
        if t == 2:
            saved = copy.deepcopy(optimizer.state_dict())
            assert saved["state"].keys() == set(range(len(list(net.parameters()))))
            optimizer = config.build(net)
            optimizer.load_state_dict(saved)
            for group in optimizer.param_groups:
                group["lr"] *= factor
        gradients(plain, t)
        assert optimizer.step(lambda t=t: gradients(net, t)) == 3.0
        plain_step(plain, means, moments, config, t, factor)
        assert all(parameter.grad is not None for parameter in net.parameters())
    for (name, found), expected in zip(net.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")

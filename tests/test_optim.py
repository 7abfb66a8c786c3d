import itertools
import math

import pytest
import torch
from helpers import composed

from chargpt.model import GPT, GPTConfig
from chargpt.optim import AdamWConfig, lr_factor


def test_decay_on_matrices_only():
    net = GPT(GPTConfig(block_size=8, n_layer=2, n_head=2, n_embd=16), 3)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    optimizer = AdamWConfig(lr=1e-3, weight_decay=0.1, betas=[0.9, 0.99]).build(net)
    assert isinstance(optimizer, torch.optim.AdamW)
    plain, decay = optimizer.param_groups
    assert (decay["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    blocks = {f"blocks.{n}.{part}.weight" for n in (0, 1) for part in ("sa.qkv", "sa.proj", "ffwd.net.0", "ffwd.net.2")}
    assert {names[id(p)] for p in decay["params"]} == blocks | {"lm_head.weight"}
    assert {names[id(p)] for p in plain["params"]} == set(names.values()) - blocks - {"lm_head.weight"}
    assert len(decay["params"]) + len(plain["params"]) == len(names)
    for group in (decay, plain):
        assert (group["lr"], group["betas"], group["fused"]) == (1e-3, (0.9, 0.99), True)


def rates(steps, **config):
    """The learning rate of each step of a run."""
    config = AdamWConfig(lr=1e-3, **config)
    return [config.lr * lr_factor(config, step, steps) for step in range(steps)]


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_schedules_warm_up_and_fall(schedule):
    lr = rates(101, schedule=schedule, warmup_steps=20)
    assert lr[:20] == pytest.approx([1e-3 * (n + 1) / 21 for n in range(20)])
    assert max(lr) == lr[20] == pytest.approx(1e-3)
    assert all(a > b for a, b in itertools.pairwise(lr[20:]))
    assert lr[-1] == pytest.approx(1e-4)
    middle, quarter = lr[60], lr[40]
    assert middle == pytest.approx((1e-3 + 1e-4) / 2)
    expected = 0.75 if schedule == "linear" else (1 + math.cos(math.pi / 4)) / 2
    assert quarter == pytest.approx(1e-4 + 9e-4 * expected)


def test_the_decay_may_begin_late():
    """Warm-up, stable, decay."""
    lr = rates(101, schedule="linear", warmup_steps=20, decay_share=0.25, min_lr_factor=0.0)
    assert lr[:20] == pytest.approx([1e-3 * (n + 1) / 21 for n in range(20)])
    assert lr[20:76] == [1e-3] * 56
    assert all(a > b for a, b in itertools.pairwise(lr[75:]))
    assert lr[-1] == 0
    assert rates(101, schedule="linear", warmup_steps=95, decay_share=0.25)[95] == 1e-3  # the warm-up comes first


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_past_the_last_step_the_rate_stays(schedule):
    """The scheduler is stepped once more often than there are steps, and a run of one step has no way to go."""
    config = AdamWConfig(schedule=schedule, min_lr_factor=0.05)
    assert [lr_factor(config, step, 10) for step in (9, 10, 50)] == pytest.approx([0.05] * 3)
    assert lr_factor(config, 0, 1) == 1.0
    assert lr_factor(AdamWConfig(schedule=schedule, warmup_steps=9), 4, 5) == pytest.approx(0.5)


def test_default_optimizer_is_the_lectures():
    for optimizer in (AdamWConfig(), composed("run_dir=x").optimizer):
        assert (optimizer.lr, optimizer.weight_decay, list(optimizer.betas)) == (3e-4, 0.01, [0.9, 0.999])
    assert rates(10) == [1e-3] * 10

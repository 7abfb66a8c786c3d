import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import composed

from chargpt.errors import UserError
from chargpt.module import CharLM

MODEL = {"name": "gpt", "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16, "dropout": 0.0}
OPTIMIZER = {
    "lr": 1e-3, "weight_decay": 0.1, "betas": [0.9, 0.99],
    "schedule": "constant", "warmup_steps": 0, "min_lr_factor": 0.1,
}  # fmt: skip


def module(max_steps=100, **optimizer):
    lm = CharLM(MODEL, OPTIMIZER | optimizer, "abc", {"name": "a text", "sha256": ""})
    lm._trainer = SimpleNamespace(max_steps=max_steps)
    return lm


def test_decay_on_matrices_only():
    lm = module()
    names = {id(parameter): name for name, parameter in lm.net.named_parameters()}
    decay, plain = lm.configure_optimizers()["optimizer"].param_groups
    assert (decay["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    blocks = {f"blocks.{n}.{part}.weight" for n in (0, 1) for part in ("sa.qkv", "sa.proj", "ffwd.net.0", "ffwd.net.2")}
    assert {names[id(p)] for p in decay["params"]} == blocks | {"lm_head.weight"}
    assert len(decay["params"]) + len(plain["params"]) == len(names)
    assert decay["betas"] == (0.9, 0.99)
    assert decay["fused"]


def rates(steps, **optimizer):
    lm = module(steps, **optimizer)
    made = lm.configure_optimizers()
    found = []
    for _ in range(steps):
        found.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    assert made["lr_scheduler"]["interval"] == "step"
    return found


def test_constant_schedule_is_the_lectures():
    assert rates(10) == [1e-3] * 10


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


def test_loss_is_nats_a_character():
    logits = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    loss = module().loss(logits, torch.tensor([[0, 2]]))
    assert loss.item() == pytest.approx((-math.log(math.e**2 / (math.e**2 + 2)) + math.log(3)) / 2, rel=1e-6)
    assert module().loss(logits.bfloat16(), torch.tensor([[0, 2]])).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.0}, r"optimizer\.lr must be above 0"),
        ({"lr": float("nan")}, r"optimizer\.lr"),
        ({"weight_decay": -1.0}, r"optimizer\.weight_decay"),
        ({"betas": [0.9]}, r"optimizer\.betas must be two numbers"),
        ({"betas": [0.9, 1.0]}, r"optimizer\.betas"),
        ({"schedule": "cosin"}, r"optimizer\.schedule must be one of constant, cosine, linear; got 'cosin'"),
        ({"warmup_steps": -1}, r"optimizer\.warmup_steps"),
        ({"min_lr_factor": 2.0}, r"optimizer\.min_lr_factor"),
    ],
)
def test_out_of_range(change, message):
    with pytest.raises(UserError, match=message):
        module(**change)


def test_default_optimizer_is_the_lectures():
    optimizer = composed("run_dir=x").optimizer
    assert (optimizer.lr, optimizer.weight_decay, list(optimizer.betas)) == (3e-4, 0.01, [0.9, 0.999])
    assert optimizer.schedule == "constant"

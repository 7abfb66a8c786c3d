"""The formulas of docs/scaling.md, compared with what PyTorch counts."""

import weakref

import pytest
import torch
from helpers import OPTIONS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import costs
from benchmarks.costs import Step
from benchmarks.training import autocast
from chargpt.kernels import choice
from chargpt.model import GPTConfig, build_model
from chargpt.module import CharLM
from chargpt.optim import OPTIMIZER_CONFIGS

SIZES = {"block_size": 100, "n_layer": 2, "n_head": 2, "n_embd": 64}  # 100: the last block of queries is shorter
MODELS = [GPTConfig(**SIZES, **options, dropout=0.1) for options in OPTIONS]


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_parameters_flops_and_cache(model, monkeypatch):
    """In fp32 by PyTorch's own products: it counts none of oneDNN's."""
    monkeypatch.setattr(choice, "forced_onednn", False)
    step = Step(model, B=2, half=False)
    net = build_model(model, step.V)
    assert step.parameters == sum(weight.numel() for weight in net.parameters())
    with FlopCounterMode(display=False) as counter:
        logits = net(torch.zeros(step.B, model.block_size, dtype=torch.int64))
        assert counter.get_total_flops() == step.forward_flops
        logits.sum().backward()
    assert counter.get_total_flops() == step.flops == 3 * step.forward_flops
    cache = net.new_cache(1)
    assert step.cache_bytes == cache.keys_and_values.nbytes + cache.previous.nbytes


@pytest.mark.parametrize("name", OPTIMIZER_CONFIGS)
def test_optimizers(name):
    step = Step(GPTConfig(**SIZES), B=1, optimizer=name)
    net = build_model(step.model, step.V)
    optimizer = OPTIMIZER_CONFIGS[name]().build(net)
    for weight in net.parameters():
        weight.grad = torch.ones_like(weight)
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    assert counter.get_total_flops() == step.optimizer_flops
    kept = [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    assert sum(value.nbytes for value in kept) == step.optimizer_bytes


class Made(TorchDispatchMode):
    """The storages that operators made, as long as they live."""

    def __init__(self):
        super().__init__()
        self.storages = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.storages |= {each.untyped_storage() for each in tree_leaves(out) if isinstance(each, torch.Tensor)}
        return out


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[-1]], ids=str)
def test_activations(options, dropout, half, monkeypatch):
    """Of 64 blocks, which a CPU takes in two parts."""
    monkeypatch.setattr(choice, "forced_onednn", None if half else False)
    model = GPTConfig(**SIZES, **options, dropout=dropout)
    step = Step(model, B=64, half=half)
    module = CharLM(model, OPTIMIZER_CONFIGS["adamw"](), "".join(map(chr, range(step.V)))).train()
    batch = torch.randint(step.V, (2, 64, 100))
    with autocast("cpu", "bf16" if half else "fp32"):
        module.training_loss(*batch)  # makes what later steps share, such as rotary positions
        with Made() as made:
            loss = module.training_loss(*batch)
    given = {each.untyped_storage() for each in (batch, *module.parameters())}
    assert loss.requires_grad
    assert sum(each.nbytes() for each in set(made.storages) - given) == pytest.approx(step.activation_bytes, rel=2e-3)


def test_tables(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["costs", "--measure"])
    costs.main()
    assert "| 10,788,929 " in capsys.readouterr().out

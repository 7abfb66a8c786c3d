import math

import pytest
import torch
from torch.nn import functional as F

from chargpt.batches import IGNORED
from chargpt.model import GPTConfig
from chargpt.module import CharLM
from chargpt.optim import AdamWConfig

MODEL = GPTConfig(block_size=8, n_layer=2, n_head=2, n_embd=16, dropout=0.0)


def test_loss_is_nats_per_character():
    module = CharLM(MODEL, AdamWConfig(), "abc")
    logits = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    loss = module.loss(logits, torch.tensor([[0, 2]]))
    assert loss.item() == pytest.approx((-math.log(math.e**2 / (math.e**2 + 2)) + math.log(3)) / 2, rel=1e-6)
    assert module.loss(logits.bfloat16(), torch.tensor([[0, 2]])).dtype == torch.float32


def test_validation_weighs_batches_by_their_real_targets():
    """Padding counts nothing, nor does a batch of padding only."""
    torch.manual_seed(0)
    module = CharLM(MODEL, AdamWConfig(), "abc").eval()
    ids = torch.randint(3, (2, 3, 8))
    few = torch.full((3, 8), IGNORED)
    few[0, :5] = ids[1, 0, :5]
    batches = [(ids[0], ids[1]), (ids[1], few), (torch.zeros_like(few), torch.full_like(few, IGNORED))]
    losses, hits = [], []
    with torch.no_grad():
        for inputs, targets in batches:
            module.validation_step((inputs, targets), 0)
            real = targets != IGNORED
            losses += F.cross_entropy(module.net(inputs)[real], targets[real], reduction="none").tolist()
            hits += (module.net(inputs)[real].argmax(-1) == targets[real]).tolist()
    assert len(losses) == 24 + 5
    assert module.mean_loss.compute().item() == pytest.approx(sum(losses) / 29, rel=1e-6)
    assert module.accuracy.compute().item() == pytest.approx(sum(hits) / 29)
    with torch.no_grad():
        module.net.lm_head.bias.fill_(math.nan)
        module.validation_step(batches[0], 0)
    assert module.mean_loss.compute().isnan()


def test_metrics_stay_in_fp32_under_bf16_true():
    module = CharLM(MODEL, AdamWConfig(), "abc").to(torch.bfloat16)
    assert module.net.lm_head.weight.dtype == torch.bfloat16
    losses = [1.0] * 600 + [3.0] * 600  # in bfloat16 a sum of ones stays at 256
    for loss in losses:
        module.mean_loss.update(torch.tensor(loss), weight=1)
    assert module.mean_loss.compute().item() == 2.0
    module.best_val_loss.update(torch.tensor(1.6446))
    assert module.to(torch.bfloat16).best_val_loss.compute().item() == pytest.approx(1.6446, rel=1e-6)


@pytest.mark.parametrize(("part", "expected"), [(40, [5]), (39, [4, 1]), (3, [1] * 5)])
def test_a_cpu_takes_a_batch_in_parts_and_nothing_changes(part, expected, monkeypatch):
    """Neither the loss nor the gradients; a part has the size allowed at most, and a row is never cut."""
    monkeypatch.setattr("chargpt.module.CPU_PART", part)
    torch.manual_seed(0)
    lm = CharLM(MODEL, AdamWConfig(), "abc").double()
    inputs, targets = torch.randint(3, (2, 5, 8), generator=torch.Generator().manual_seed(1))
    right = lm.loss(lm.net(inputs), targets)
    rows = []
    lm.net.register_forward_pre_hook(lambda _, arguments: rows.append(len(arguments[0])))
    loss = lm.training_loss(inputs, targets)
    assert rows == expected
    torch.testing.assert_close(loss, right, rtol=1e-6, atol=0)
    parameters = list(lm.net.parameters())
    for found, other in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(right, parameters), strict=True):
        torch.testing.assert_close(found, other, rtol=1e-5, atol=1e-8)
    rows.clear()
    lm.to("meta").training_loss(inputs.to("meta"), targets.to("meta"))  # other devices take all at once
    assert rows == [5]

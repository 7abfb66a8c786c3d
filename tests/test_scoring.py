"""Scores against the plain formula: one character at a time."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from chargpt.checkpoint import Scoring
from chargpt.errors import NonFiniteError, UserError
from chargpt.model import BigramConfig, GPTConfig, build_model
from chargpt.scoring import Score, score

SMALL = GPTConfig(block_size=8, n_layer=2, n_head=2, n_embd=16, dropout=0.0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(SMALL, 11).eval()


def text(length):
    return np.random.default_rng(0).integers(0, 11, length).astype(np.uint8)


@torch.no_grad()
def one_by_one(model, ids, first_of):
    """The mean loss and accuracy where character n is predicted from those from first_of(n) on."""
    losses, hits = [], 0
    for n in range(1, len(ids)):
        logits = model(torch.tensor(ids[first_of(n) : n].astype(np.int64))[None])[0, -1]
        losses.append(F.cross_entropy(logits, torch.tensor(int(ids[n]))).item())
        hits += int(logits.argmax() == ids[n])
    return np.mean(losses), hits / len(losses)


@pytest.mark.parametrize("length", [2, 8, 9, 10, 17, 50])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_by_blocks(length, batch_size, model):
    ids = text(length)
    loss, accuracy = one_by_one(model, ids, lambda n: (n - 1) // 8 * 8)
    found = score(model, ids, Scoring(batch_size=batch_size))
    assert found.characters == length - 1
    assert found.loss == pytest.approx(loss, abs=1e-6)
    assert found.accuracy == pytest.approx(accuracy)
    assert found.bits == pytest.approx(loss / math.log(2), abs=1e-6)
    assert found.perplexity == pytest.approx(math.exp(loss), abs=1e-5)


@pytest.mark.parametrize("length", [2, 8, 9, 10, 17, 50])
@pytest.mark.parametrize("stride", [1, 3, 5, 8])
def test_by_windows(length, stride, model):
    """A character's window begins where the step puts it, and at the text's end where the last window does."""
    ids, step, targets = text(length), 8 - stride + 1, length - 1
    size = min(8, targets)

    def first_of(n):
        start = 0 if n <= size else math.ceil((n - size) / step) * step
        return min(start, targets - size)

    loss, accuracy = one_by_one(model, ids, first_of)
    assert all(n - first_of(n) >= min(n, stride) for n in range(1, length))
    found = score(model, ids, Scoring(batch_size=3), stride)
    assert found.characters == length - 1
    assert found.loss == pytest.approx(loss, abs=1e-6)
    assert found.accuracy == pytest.approx(accuracy)


def test_the_least_context_is_that_of_blocks(model):
    ids = text(8 * 5 + 1)
    assert score(model, ids, Scoring(), 1) == score(model, ids, Scoring())


def test_a_bigram():
    torch.manual_seed(0)
    model, ids = build_model(BigramConfig(block_size=4), 11).eval(), text(30)
    assert score(model, ids, Scoring()).loss == pytest.approx(one_by_one(model, ids, lambda n: n - 1)[0], abs=1e-6)


def test_precision_is_the_runs(model):
    """In bf16 the numbers are others, near those in fp32."""
    ids = text(500)
    exact, rough = (score(model, ids, Scoring(precision=name)).loss for name in ("32-true", "bf16-mixed"))
    assert exact != rough
    assert exact == pytest.approx(rough, abs=0.01)


def test_a_long_sum_is_exact():
    """A float32 sum of a million equal losses would be off by more."""
    model = build_model(BigramConfig(block_size=256), 3).eval()
    with torch.no_grad():
        model.token_embedding_table.weight.fill_(0.1)
    found = score(model, np.zeros(1_000_001, np.uint8), Scoring())
    assert found.loss == pytest.approx(math.log(3), rel=1e-7)
    assert found.accuracy == 1


def test_what_cannot_be_scored(model):
    with pytest.raises(UserError, match="less than two characters"):
        score(model, text(1), Scoring())
    for stride in (0, 9, -1):
        with pytest.raises(UserError, match=f"at most block_size=8 characters; got {stride}"):
            score(model, text(20), Scoring(), stride)
    for wrong in ({"split": [1.0]}, {"split": [0.0, 1.0]}, {"batch_size": 0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Scoring(**wrong)


def test_outputs_that_are_not_finite():
    model = build_model(SMALL, 11).eval()
    with torch.no_grad():
        model.lm_head.bias[3] = float("nan")
    with pytest.raises(NonFiniteError):
        score(model, text(20), Scoring())


def test_perplexity_beyond_all_bounds():
    assert Score(1, 1000.0, 0.0).perplexity == math.inf


def test_a_file_may_say_any_batch_size(model, monkeypatch):
    """It decides neither the memory nor the score."""
    ids, most = text(3000), []
    plain = score(model, ids, Scoring(), 8)
    monkeypatch.setattr("chargpt.scoring.MOST_CHARACTERS", 64)
    hook = model.register_forward_pre_hook(lambda module, inputs: most.append(inputs[0].numel()))
    for stride in (None, 8):
        found = score(model, ids, Scoring(batch_size=10**8), stride)
        assert max(most) == 64
    hook.remove()
    assert found.loss == pytest.approx(plain.loss, abs=1e-9)

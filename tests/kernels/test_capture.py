"""The step that is captured on CUDA; on a CPU it runs uncaptured."""

from functools import partial

import pytest
import torch
from helpers import OPTIONS

from chargpt.errors import UserError
from chargpt.generation import Sampling, generate
from chargpt.kernels.capture import CapturedStep, worth_capturing
from chargpt.model import GPT, Bigram, BigramConfig, GPTConfig


@pytest.fixture(params=OPTIONS, ids=str)
def gpt(request):
    torch.manual_seed(0)
    return GPT(GPTConfig(block_size=8, n_layer=2, n_head=2, n_embd=16, **request.param), 11).double().eval()


@pytest.fixture
def idx():
    return torch.randint(11, (2, 8), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("device", "characters", "samples", "expected"),
    [("cuda", 500, 1, True), ("cuda", 5, 1, False), ("cuda", 500, 10_000, False), ("cpu", 500, 1, False)],
)
def test_when_it_is_worth_capturing(device, characters, samples, expected):
    assert worth_capturing(torch.device(device), characters, samples) is expected


def test_its_logits_are_the_uncached_ones_at_every_position(gpt, idx):
    """Also once the cache was cleared and filled again, and with reads of the usual kind in between."""
    cache = gpt.new_cache(2)
    step = CapturedStep(gpt, cache)
    for text, start in ((idx, 2), (idx.flip(1), 4)):
        cache.clear()
        gpt.read(text[:, :start], cache)
        for n in range(start, 8):
            read = partial(gpt.read, cache=cache) if n == 5 else step
            expected = gpt(text[:, : n + 1])[:, -1]
            torch.testing.assert_close(read(text[:, n : n + 1]), expected, rtol=1e-10, atol=1e-12)
    assert cache.length == 8


def test_a_full_cache_is_refused(gpt, idx):
    """As an uncaptured read is; the cache is as it was."""
    cache = gpt.new_cache(2)
    step = CapturedStep(gpt, cache)
    gpt.read(idx, cache)
    with pytest.raises(UserError, match="9 characters is longer than block_size=8"):
        step(idx[:, :1])
    assert cache.length == 8
    cache.clear()
    torch.testing.assert_close(gpt.read(idx[:, :5], cache), gpt(idx[:, :5])[:, -1], rtol=1e-10, atol=1e-12)


def test_a_bigram_too(idx):
    bigram = Bigram(BigramConfig(block_size=8), 11)
    cache = bigram.new_cache(2)
    step = CapturedStep(bigram, cache)
    for n in range(8):
        assert torch.equal(step(idx[:, n : n + 1]), bigram(idx)[:, n])
    with pytest.raises(UserError, match="9 characters"):
        step(idx[:, :1])


def text_of(model, idx, **sampling):
    generator = torch.Generator(idx.device).manual_seed(2)
    return torch.stack(list(generate(model, idx, Sampling(**sampling), generator)), 1)


@pytest.mark.parametrize("window", ["exact", "stride"])
@pytest.mark.parametrize("samples", [1, 3])
def test_it_writes_the_same_text(gpt, samples, window, monkeypatch):
    """Within the window and past it."""
    prompt, options = torch.tensor([[1, 2, 3]]), {"max_new_tokens": 30, "num_samples": samples, "window": window}
    expected, calls = text_of(gpt, prompt, **options), []
    call = CapturedStep.__call__
    monkeypatch.setattr(CapturedStep, "__call__", lambda self, *given: calls.append(1) or call(self, *given))
    monkeypatch.setattr("chargpt.generation.worth_capturing", lambda device, characters, samples: True)
    assert torch.equal(text_of(gpt, prompt, **options), expected)
    assert len(calls) >= 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")
@pytest.mark.parametrize("length", [1, 63, 64])
def test_on_cuda_the_captured_step_writes_the_same_text(monkeypatch, length):
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(block_size=64, n_layer=2, n_head=2, n_embd=32, dropout=0.0), 11).cuda().eval()
    prompt = torch.arange(length, device="cuda")[None] % 11
    options = {"max_new_tokens": 150, "temperature": 0, "window": "stride"}
    captured = text_of(gpt, prompt, **options)
    monkeypatch.setattr("chargpt.generation.worth_capturing", lambda *_: False)
    assert torch.equal(captured, text_of(gpt, prompt, **options))

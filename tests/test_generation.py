import itertools

import pytest
import torch
from helpers import OPTIONS

from chargpt.errors import NonFiniteError
from chargpt.generation import Sampling, generate, next_token
from chargpt.model import GPT, GPTConfig


@pytest.fixture(params=OPTIONS, ids=str)
def gpt(request):
    torch.manual_seed(0)
    config = GPTConfig(block_size=8, n_layer=2, n_head=2, n_embd=16, dropout=0.2, **request.param)
    return GPT(config, 11).double().eval()


def prompt(length):
    return torch.randint(11, (1, length), generator=torch.Generator().manual_seed(1))


def text_of(model, idx, **sampling):
    """The new ids, (N, max_new_tokens), from the same source of randomness each time."""
    return torch.stack(list(generate(model, idx, Sampling(**sampling), torch.Generator().manual_seed(2))), 1)


def lecture_generate(model, idx, steps):
    """The lecture's loop: crop, read all, draw."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        probs = model(idx[:, -model.config.block_size :])[:, -1].float().softmax(-1)
        idx = torch.cat((idx, torch.multinomial(probs, 1, generator=generator)), 1)
    return idx[:, -steps:]


@pytest.mark.parametrize("length", [1, 5, 8, 20])
@pytest.mark.parametrize("samples", [1, 3])
def test_the_lectures_text_within_and_past_the_window(gpt, length, samples):
    """Where the prompt is read once for all samples, too."""
    idx = prompt(length)
    expected = lecture_generate(gpt, idx.expand(samples, -1), 30)
    assert torch.equal(text_of(gpt, idx, max_new_tokens=30, num_samples=samples), expected)


@pytest.mark.parametrize("length", [1, 8, 20])
def test_stride_reads_half_a_window_again(gpt, length):
    """And each new character once, where the other way reads a window for each."""
    idx = prompt(length)
    context, generator, expected = idx[:, -8:], torch.Generator().manual_seed(2), []
    read = context.shape[1] - 1
    for _ in range(30):
        read += 1
        if context.shape[1] > 8:
            context = context[:, -4:]
            read += 3
        token = next_token(gpt(context)[:, -1], Sampling(), generator)
        expected.append(token)
        context = torch.cat((context, token[:, None]), 1)
    forward, lengths = gpt.forward, []
    gpt.forward = lambda idx, cache: lengths.append(idx.shape[1]) or forward(idx, cache)
    found = text_of(gpt, idx, max_new_tokens=30, window="stride")
    assert torch.equal(found, torch.stack(expected, 1))
    assert sum(lengths) == read


def support(logits, **choice):
    """The characters that can be drawn at all."""
    many = torch.tensor([logits]).repeat(4000, 1)
    return set(next_token(many, Sampling(**choice), torch.Generator().manual_seed(0)).tolist())


def test_filters_keep_what_they_say():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().tolist()
    assert support(logits) == {0, 1, 2, 3}
    assert support(logits, temperature=0) == {0}
    assert support(logits, top_k=2) == {0, 1}
    assert support(logits, top_k=9) == {0, 1, 2, 3}
    assert support(logits, top_p=0.35) == {0}
    assert support(logits, top_p=0.5) == {0, 1}
    assert support(logits, top_p=1.0) == {0, 1, 2, 3}
    assert support(logits, top_k=3, top_p=0.7) == {0, 1}  # of the three, 0 and 1 have 4/9 and 3/9
    assert support([1.0, 1.0, 1.0, 0.0], top_k=2) == {0, 1, 2}  # ties with the second
    assert support([1.0, 1.0, 1.0, 0.0], top_p=0.1) == {0, 1, 2}
    assert support([0.0, 2.0, 2.0, 1.0], top_p=1e-320) == {1, 2}


@pytest.mark.parametrize(
    ("logits", "temperature"),
    [
        ([1.0, 1.0, 0.5], 1e-300),
        ([-7.0, 80.0, 79.0], 1e-38),
        ([3e38, 2e38, 3e38], 0.5),
        ([1.0, 2.0, 3.0], 0.6),
        ([1.0, 2.0, 3.0], 1.7),
    ],
)
def test_temperature(logits, temperature):
    """As plain arithmetic in float64."""
    exact = torch.tensor(logits).double()
    expected = ((exact - exact.max()) / temperature).softmax(0)
    many = torch.tensor([logits]).repeat(20_000, 1)
    drawn = next_token(many, Sampling(temperature=temperature), torch.Generator().manual_seed(0))
    found = torch.bincount(drawn, minlength=3) / len(drawn)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.02)


def test_the_cache_is_no_larger_than_the_text(gpt, monkeypatch):
    """A long window costs memory only when it is used; numbers may be beyond 64 bits."""
    lengths, new_cache = [], gpt.new_cache
    monkeypatch.setattr(gpt, "new_cache", lambda N, length: lengths.append(length) or new_cache(N, length))
    expected = text_of(gpt, prompt(3), max_new_tokens=20)
    assert torch.equal(text_of(gpt, prompt(3), max_new_tokens=4), expected[:, :4])
    assert len(list(itertools.islice(generate(gpt, prompt(3), Sampling(10**30, top_k=10**30)), 20))) == 20
    assert lengths == [8, 7, 8]


def test_outputs_that_are_not_finite(gpt):
    with torch.no_grad():
        gpt.lm_head.bias.fill_(torch.inf)
    with pytest.raises(NonFiniteError, match="the model's outputs are not finite numbers"):
        next(generate(gpt, prompt(3)))

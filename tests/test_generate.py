import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chargpt import decode
from chargpt.errors import UserError
from chargpt.generate import generate, next_token
from chargpt.model import GPT, Bigram


@pytest.fixture
def gpt():
    torch.manual_seed(0)
    return GPT(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=16, dropout=0.2).double().eval()


def lecture_generate(model, idx, steps, generator):
    """The lecture's loop: crop, read all, draw."""
    for _ in range(steps):
        probs = model(idx[:, -model.block_size :])[:, -1].float().softmax(-1)
        idx = torch.cat((idx, torch.multinomial(probs, 1, generator=generator)), 1)
    return idx[:, -steps:]


@pytest.mark.parametrize("length", [1, 5, 8, 20])
@pytest.mark.parametrize("samples", [1, 3])
def test_the_lectures_text_within_and_past_the_window(gpt, length, samples):
    """One prefill for all samples gives what reading the prompt for each would."""
    idx = torch.randint(11, (1, length), generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    ours = torch.stack(list(generate(gpt, idx, 30, generator=generator, num_samples=samples)), 1)
    expected = lecture_generate(gpt, idx.expand(samples, -1), 30, torch.Generator().manual_seed(2))
    assert torch.equal(ours, expected)


def test_logits_within_the_window_are_the_uncached_ones(gpt, monkeypatch):
    """At every position, in float64."""
    seen = []
    monkeypatch.setattr("chargpt.generate.next_token", lambda logits, *_: seen.append(logits) or logits.argmax(-1))
    text = [1, *torch.stack(list(generate(gpt, torch.tensor([[1]]), 8)), 1)[0].tolist()]
    for length, logits in enumerate(seen, 1):
        torch.testing.assert_close(logits, gpt(torch.tensor([text[:length]]))[:, -1], rtol=1e-10, atol=1e-12)
    assert len(seen) == 8


@pytest.mark.parametrize("window", ["exact", "stride"])
@pytest.mark.parametrize("samples", [1, 3])
def test_the_step_that_is_captured_on_cuda_is_the_same(gpt, samples, window, monkeypatch):
    """Here it runs uncaptured, within the window and past it."""
    idx = torch.tensor([[1, 2, 3]])

    def text():
        generator = torch.Generator().manual_seed(2)
        return torch.stack(list(generate(gpt, idx, 30, generator=generator, num_samples=samples, window=window)), 1)

    expected, calls = text(), []
    step = decode.GraphedDecoder._step
    monkeypatch.setattr(decode.GraphedDecoder, "_step", lambda self: calls.append(1) or step(self))
    monkeypatch.setattr("chargpt.generate.worth_capturing", lambda device, characters, samples: True)
    assert torch.equal(text(), expected)
    assert len(calls) >= 5


def test_its_logits_are_the_uncached_ones_at_every_position(gpt):
    idx = torch.randint(11, (2, 8), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        cache = gpt.new_cache(2)
        gpt(idx[:, :2], cache)
        decoder = decode.GraphedDecoder(gpt, cache)
        for n in range(2, 8):
            expected = gpt(idx[:, : n + 1])[:, -1]
            torch.testing.assert_close(decoder(idx[:, n]), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")
def test_on_cuda_the_captured_step_writes_the_same_text(monkeypatch):
    torch.manual_seed(0)
    gpt = GPT(vocab_size=11, block_size=64, n_layer=2, n_head=2, n_embd=32, dropout=0.0).cuda().eval()
    idx = torch.zeros(1, 1, dtype=torch.int64, device="cuda")

    def text():
        return torch.stack(list(generate(gpt, idx, 150, temperature=0, window="stride")), 1)

    captured = text()
    monkeypatch.setattr("chargpt.generate.worth_capturing", lambda *_: False)
    assert torch.equal(captured, text())


@pytest.mark.parametrize(
    ("device", "characters", "samples", "expected"),
    [("cuda", 500, 1, True), ("cuda", 5, 1, False), ("cuda", 500, 10_000, False), ("cpu", 500, 1, False)],
)
def test_when_it_is_worth_capturing(device, characters, samples, expected):
    assert decode.worth_capturing(torch.device(device), characters, samples) is expected


@pytest.mark.parametrize("length", [1, 8, 20])
def test_stride_reads_half_a_window_anew(gpt, length):
    idx = torch.randint(11, (1, length), generator=torch.Generator().manual_seed(1))
    ours = torch.stack(list(generate(gpt, idx, 30, generator=torch.Generator().manual_seed(2), window="stride")), 1)
    context, generator, expected = idx[:, -8:], torch.Generator().manual_seed(2), []
    for _ in range(30):
        if context.shape[1] > 8:
            context = context[:, -4:]
        token = next_token(gpt(context)[:, -1], generator=generator)
        expected.append(token)
        context = torch.cat((context, token[:, None]), 1)
    assert torch.equal(ours, torch.stack(expected, 1))


def test_stride_on_the_smallest_window():
    gpt = GPT(vocab_size=5, block_size=1, n_layer=1, n_head=1, n_embd=4, dropout=0.0).eval()
    assert len(list(generate(gpt, torch.tensor([[1]]), 9, window="stride"))) == 9


def test_bigram_generates():
    model = Bigram(vocab_size=11, block_size=4)
    ours = torch.stack(list(generate(model, torch.tensor([[3]]), 20, generator=torch.Generator().manual_seed(2))), 1)
    assert torch.equal(ours, lecture_generate(model, torch.tensor([[3]]), 20, torch.Generator().manual_seed(2)))


def test_temperature_zero_is_argmax(gpt):
    idx = torch.tensor([[1, 2, 3]])
    for token in generate(gpt, idx, 12, temperature=0):
        assert token == gpt(idx[:, -8:])[:, -1].argmax(-1)
        idx = torch.cat((idx, token[:, None]), 1)


def support(logits, **choice):
    """The characters that can be drawn at all."""
    many = torch.tensor([logits]).repeat(4000, 1)
    return set(next_token(many, generator=torch.Generator().manual_seed(0), **choice).tolist())


def test_filters_keep_what_they_say():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log().tolist()
    assert support(logits) == {0, 1, 2, 3}
    assert support(logits, top_k=2) == {0, 1}
    assert support(logits, top_k=9) == {0, 1, 2, 3}
    assert support(logits, top_p=0.35) == {0}
    assert support(logits, top_p=0.5) == {0, 1}
    assert support(logits, top_p=1.0) == {0, 1, 2, 3}
    assert support(logits, top_k=3, top_p=0.7) == {0, 1}  # of the three, 0 and 1 have 4/9 and 3/9
    assert support([1.0, 1.0, 1.0, 0.0], top_k=2) == {0, 1, 2}  # ties with the second
    assert support([1.0, 1.0, 1.0, 0.0], top_p=0.1) == {0, 1, 2}


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=8), st.integers(1, 8), st.floats(0.05, 1.0))
def test_filters_follow_their_definition(logits, k, p):
    """Ties are common among so few values."""
    probs = torch.tensor(logits, dtype=torch.float).softmax(-1).tolist()
    drawn = support([float(x) for x in logits], top_k=k)
    assert all(sum(other > logits[i] for other in logits) < k for i in drawn)
    drawn = support([float(x) for x in logits], top_p=p)
    assert all(sum(other for other in probs if other > probs[i]) < p + 1e-6 for i in drawn)
    assert probs.index(max(probs)) in drawn


def test_temperature_sharpens():
    many = torch.tensor([[1.0, 0.0]]).repeat(20_000, 1)
    for temperature in (0.5, 1.0, 2.0):
        drawn = next_token(many, temperature, generator=torch.Generator().manual_seed(0))
        expected = torch.tensor([1.0 / temperature, 0.0]).softmax(-1)[0].item()
        assert (drawn == 0).float().mean().item() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"temperature": -1.0}, "temperature must be 0"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"num_samples": 0}, "num_samples must be at least 1"),
        ({"window": "stirde"}, "window must be one of exact, stride; got 'stirde'"),
    ],
)
def test_out_of_range(gpt, bad, message):
    with pytest.raises(UserError, match=message):
        next(generate(gpt, torch.tensor([[1]]), **{"max_new_tokens": 3} | bad))

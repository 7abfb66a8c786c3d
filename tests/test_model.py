import itertools
import math

import pytest
import torch
from helpers import OPTIONS
from torch import nn
from torch.nn import functional as F

from benchmarks.peers import PlainGPT
from chargpt.errors import UserError
from chargpt.model import GPT, Bigram, BigramConfig, GPTConfig

SIZES = {"block_size": 12, "n_layer": 3, "n_head": 3, "n_embd": 24, "dropout": 0.2}
VOCAB = 11


@pytest.fixture
def gpt():
    torch.manual_seed(0)
    return GPT(GPTConfig(**SIZES), VOCAB).double().eval()


@pytest.fixture(params=[*OPTIONS, {"n_layer": 1}], ids=str)
def any_gpt(request):
    """With each of the options that the lecture does not have, and with one layer."""
    torch.manual_seed(0)
    return GPT(GPTConfig(**SIZES | request.param), VOCAB).double().eval()


@pytest.fixture
def lecture():
    """The lecture's formula, under the lecture's names."""
    torch.manual_seed(1)
    return PlainGPT(vocab_size=VOCAB, **SIZES).double().eval()


@pytest.fixture
def idx():
    return torch.randint(VOCAB, (4, 12), generator=torch.Generator().manual_seed(2))


def test_the_lectures_function(gpt, lecture, idx):
    """Its weights load as they are; outputs and gradients then agree."""
    gpt.load_state_dict(lecture.state_dict())
    for length in (1, 5, 12):
        torch.testing.assert_close(gpt(idx[:, :length]), lecture(idx[:, :length]), rtol=1e-10, atol=1e-12)
    for model in (gpt, lecture):
        F.cross_entropy(model(idx).flatten(0, 1), idx.roll(-1, 1).flatten()).backward()
    found = [parameter.grad for parameter in gpt.parameters()]
    gpt.load_state_dict({name: parameter.grad for name, parameter in lecture.named_parameters()})  # by the same names
    torch.testing.assert_close(found, [grad.data for grad in gpt.parameters()], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("changed", [1, 6, 11])
def test_causality(any_gpt, idx, changed):
    """A changed character changes the logits from there on, and none before."""
    before = any_gpt(idx)
    idx[:, changed] = (idx[:, changed] + 1) % VOCAB
    after = any_gpt(idx)
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert (before[:, changed:] != after[:, changed:]).flatten(2).any(-1).all()


def test_initial_weights_and_loss():
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(block_size=64, n_layer=2, n_head=4, n_embd=128, dropout=0.2), 65)
    for module in gpt.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            assert module.weight.mean().abs() < 1e-3
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
        if isinstance(module, nn.Linear) and module.bias is not None:
            assert not module.bias.any()
    idx = torch.randint(65, (8, 65))
    loss = F.cross_entropy(gpt(idx[:, :-1]).flatten(0, 1), idx[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(65), abs=0.1)


def test_zero_init_begins_with_blocks_that_change_nothing(idx):
    gpt = GPT(GPTConfig(**SIZES, zero_init=True), VOCAB).double().eval()
    x = torch.randn(4, 12, 24, dtype=torch.float64)
    assert all(torch.equal(block(x), x) for block in gpt.blocks)
    assert all(parameter.any() for name, parameter in gpt.named_parameters() if "qkv" in name or "net.0.w" in name)


def test_dropout_sits_in_three_places(gpt, idx, monkeypatch):
    """Dropping all that can be dropped leaves nothing of either half of a block: only the embeddings get through."""
    nothing = lambda *shape: torch.full(shape, 255, dtype=torch.uint8)  # noqa: E731
    monkeypatch.setattr("chargpt.kernels.layers.random_bytes", nothing)
    gpt.train()
    plain = gpt.lm_head(gpt.ln_f(gpt.token_embedding_table(idx) + gpt.position_embedding_table.weight))
    torch.testing.assert_close(gpt(idx), plain)

    for block in gpt.blocks:  # the third place: the attention weights; the projection's bias remains
        block.sa.dropout.forward = block.ffwd.net[3].forward = lambda x: x
    monkeypatch.setattr("chargpt.kernels.cpu_attention.random_bytes", nothing)
    x = gpt.token_embedding_table(idx) + gpt.position_embedding_table.weight
    for block in gpt.blocks:
        x = x + block.sa.proj.bias
        x = x + block.ffwd.net[2](block.ffwd.net[0](block.ln2(x)).relu())
    torch.testing.assert_close(gpt(idx), gpt.lm_head(gpt.ln_f(x)))


@pytest.mark.parametrize("portions", [[12], [1] * 12, [5, 1, 1, 5], [2, 3, 7]])
@torch.no_grad()
def test_logits_with_a_cache_are_those_without(any_gpt, idx, portions):
    """Read in any portions; a second text, too, once the cache is cleared. The last block computes what is needed."""
    computed, cache = [], any_gpt.new_cache(4)
    any_gpt.blocks[-1].ffwd.register_forward_pre_hook(lambda _, arguments: computed.append(arguments[0].shape[1]))
    for text in (idx, idx.flip(1)):
        cache.clear()
        for start, end in itertools.pairwise(itertools.accumulate(portions, initial=0)):
            computed.clear()
            logits = any_gpt(text[:, start:end], cache)
            assert computed == [min(end - start, 2 if any_gpt.config.token_shift else 1)]
            torch.testing.assert_close(logits, any_gpt(text[:, :end])[:, -1:], rtol=1e-10, atol=1e-12)
        with pytest.raises(UserError, match="13 characters is longer than block_size=12"):
            any_gpt(text[:, :1], cache)
        assert cache.length == 12


def test_bigram_is_its_table(idx):
    """With a cache as `GPT`, and whatever was read before."""
    bigram = Bigram(BigramConfig(block_size=12), VOCAB)
    assert torch.equal(bigram(idx), bigram.token_embedding_table.weight[idx])
    cache = bigram.new_cache(4)
    for start, end in ((0, 5), (5, 6), (6, 12)):
        assert torch.equal(bigram(idx[:, start:end], cache), bigram(idx)[:, end - 1 : end])

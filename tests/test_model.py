import math

import pytest
import torch
from lecture import LectureGPT
from torch import nn
from torch.nn import functional as F

from chargpt.errors import UserError
from chargpt.model import GPT, Bigram, build_model

SIZES = {"vocab_size": 11, "block_size": 12, "n_layer": 3, "n_head": 3, "n_embd": 24}


@pytest.fixture
def gpt():
    torch.manual_seed(0)
    return GPT(**SIZES, dropout=0.2).double().eval()


@pytest.fixture
def lecture():
    torch.manual_seed(1)
    return LectureGPT(**SIZES).double()


@pytest.fixture
def idx():
    return torch.randint(11, (4, 12), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("tril", [True, False])
def test_the_lectures_function(gpt, lecture, idx, tril):
    """Its weights load as they are; outputs and gradients then agree."""
    state = {name: value.clone() for name, value in lecture.state_dict().items() if tril or "tril" not in name}
    kept = set(state)
    gpt.load_state_dict(state)
    assert set(state) == kept  # the caller's dict is left alone
    torch.testing.assert_close(gpt(idx), lecture(idx), rtol=1e-10, atol=1e-12)

    for model in (gpt, lecture):
        F.cross_entropy(model(idx).flatten(0, 1), idx.roll(-1, 1).flatten()).backward()
    theirs = dict(lecture.named_parameters())
    for name, ours in gpt.named_parameters():
        if name.endswith("qkv.weight"):
            heads = name.replace("qkv.weight", "heads.{}.{}.weight")
            grads = [theirs[heads.format(n, part)].grad for part in ("query", "key", "value") for n in range(3)]
            expected = torch.cat(grads)
        else:
            expected = theirs[name].grad
        torch.testing.assert_close(ours.grad, expected, rtol=1e-9, atol=1e-12, msg=name)


def test_shorter_contexts_too(gpt, lecture, idx):
    gpt.load_state_dict(lecture.state_dict())
    for length in (1, 5):
        torch.testing.assert_close(gpt(idx[:, :length]), lecture(idx[:, :length]), rtol=1e-10, atol=1e-12)


def test_a_state_dict_that_lacks_a_head_is_refused(gpt, lecture):
    state = lecture.state_dict()
    del state["blocks.1.sa.heads.2.key.weight"]
    with pytest.raises(RuntimeError, match=r"blocks\.1\.sa\.qkv\.weight"):
        gpt.load_state_dict(state)


@pytest.mark.parametrize("changed", range(1, 12))
def test_causality(gpt, idx, changed):
    """A changed character changes the logits from there on, and none before."""
    before = gpt(idx)
    idx[:, changed] = (idx[:, changed] + 1) % 11
    after = gpt(idx)
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert (before[:, changed:] != after[:, changed:]).flatten(2).any(-1).all()


def test_parameter_counts():
    with torch.device("meta"):
        gpt = GPT(vocab_size=65, block_size=256, n_layer=6, n_head=6, n_embd=384, dropout=0.2)
        bigram = Bigram(vocab_size=65, block_size=256)
    assert sum(p.numel() for p in gpt.parameters()) == 10_788_929
    assert sum(p.numel() for p in bigram.parameters()) == 65 * 65


def test_initial_weights_and_loss():
    torch.manual_seed(0)
    gpt = GPT(vocab_size=65, block_size=64, n_layer=2, n_head=4, n_embd=128, dropout=0.2)
    for module in gpt.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            assert module.weight.mean().abs() < 1e-3
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
        if isinstance(module, nn.Linear) and module.bias is not None:
            assert not module.bias.any()
    idx = torch.randint(65, (8, 65))
    loss = F.cross_entropy(gpt(idx[:, :-1]).flatten(0, 1), idx[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(65), abs=0.1)


def test_biases_stand_where_the_lecture_has_them():
    gpt = GPT(**SIZES, dropout=0.0)
    biased = {name for name, module in gpt.named_modules() if getattr(module, "bias", None) is not None}
    blocks = {f"blocks.{n}.{part}" for n in range(3) for part in ("sa.proj", "ffwd.net.0", "ffwd.net.2", "ln1", "ln2")}
    assert biased == blocks | {"ln_f", "lm_head"}


def test_dropout_acts_in_training_only(gpt, idx):
    assert torch.equal(gpt(idx), gpt(idx))
    gpt.train()
    assert not torch.equal(gpt(idx), gpt(idx))


def test_dropout_sits_in_three_places(gpt, idx, monkeypatch):
    """Dropping all that can be dropped leaves nothing of either half of a block: only the embeddings get through."""
    monkeypatch.setattr("chargpt.dropout.random_bytes", lambda *shape: torch.full(shape, 255, dtype=torch.uint8))
    gpt.train()
    plain = gpt.lm_head(gpt.ln_f(gpt.token_embedding_table(idx) + gpt.position_embedding_table.weight))
    torch.testing.assert_close(gpt(idx), plain)

    for block in gpt.blocks:  # the third place: the attention weights; what remains is the projection's bias
        block.sa.dropout.forward = block.ffwd.net[3].forward = lambda x: x
    monkeypatch.setattr("chargpt.attention.random_bytes", lambda *shape: torch.full(shape, 255, dtype=torch.uint8))
    x = gpt.token_embedding_table(idx) + gpt.position_embedding_table.weight
    for block in gpt.blocks:
        x = x + block.sa.proj.bias
        x = x + block.ffwd.net[2](block.ffwd.net[0](block.ln2(x)).relu())
    torch.testing.assert_close(gpt(idx), gpt.lm_head(gpt.ln_f(x)))


@pytest.mark.parametrize("chunks", [[12], [1] * 12, [5, 1, 1, 5], [1, 11]])
def test_the_cache_changes_nothing(gpt, idx, chunks):
    """Read in any portions, the logits at every position are those of the whole."""
    cache = gpt.new_cache(4)
    logits = torch.cat([gpt(part, cache) for part in idx.split(chunks, dim=1)], dim=1)
    torch.testing.assert_close(logits, gpt(idx), rtol=1e-10, atol=1e-12)
    with pytest.raises(UserError, match="13 characters is longer than block_size=12"):
        gpt(idx[:, :1], cache)


def test_bigram_is_its_table(idx):
    bigram = Bigram(vocab_size=11, block_size=12)
    assert torch.equal(bigram(idx), bigram.token_embedding_table.weight[idx])
    assert bigram(idx).shape == (4, 12, 11)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_head": 5}, "n_embd must be divisible by model.n_head; got 24 and 5"),
        ({"n_layer": 0}, "model.n_layer must be at least 1"),
        ({"n_embd": -3}, "model.n_embd must be at least 1"),
        ({"n_head": 0}, "model.n_head must be at least 1"),
        ({"block_size": 0}, "model.block_size must be at least 1"),
        ({"dropout": 1.0}, "model.dropout must be at least 0 and below 1"),
        ({"dropout": -0.1}, "model.dropout"),
        ({"dropout": float("nan")}, "model.dropout"),
    ],
)
def test_out_of_range(change, message):
    with pytest.raises(UserError, match=message):
        GPT(**SIZES | {"dropout": 0.2} | change)


def test_built_by_name():
    assert isinstance(build_model({"name": "bigram", "block_size": 8}, 5), Bigram)
    with pytest.raises(UserError, match=r"model\.name must be one of gpt, bigram"):
        build_model({"name": "os.system"}, 5)
    with pytest.raises(UserError, match="not the arguments of the model bigram"):
        build_model({"name": "bigram", "block_size": 8, "n_layer": 2}, 5)

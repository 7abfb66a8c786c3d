"""Pictures of a prompt after each validation: attention maps and surprise."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from helpers import OPTIONS, STEPS, assert_same, curves, events, resume, signal_at, start, state

from chargpt.callbacks import attention_maps, surprise
from chargpt.callbacks.attention_maps import AttentionMaps, attention_weights
from chargpt.callbacks.prompted import AtPrompt
from chargpt.callbacks.surprise import Surprise
from chargpt.callbacks.text_samples import TextSamples
from chargpt.errors import Stopped, UserError
from chargpt.model import GPT, GPTConfig

NONE = ["callbacks.attention_maps=null", "callbacks.surprise=null"]


@pytest.fixture
def looks(monkeypatch):
    """What each look had before it: its kind, whether the net was in training, a weight, the ids and the text."""
    seen = []
    for kind in (AttentionMaps, Surprise):

        def look(self, net, idx, text, kind=kind, real=kind.look):
            weight = next(iter(net.parameters())).clone()
            seen.append((kind.__name__, net.training, weight, idx.tolist(), text))
            return real(self, net, idx, text)

        monkeypatch.setattr(kind, "look", look)
    return seen


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_weights_times_values_is_what_attention_gives(options):
    torch.manual_seed(0)
    net = GPT(GPTConfig(block_size=12, n_layer=3, n_head=3, n_embd=24, **options), 11).double().eval()
    for parameter in net.parameters():  # larger than at the start, where attention is nearly even
        parameter.data.normal_(std=0.5)
    found, idx = [], torch.randint(11, (2, 9))
    hooks = [
        block.sa.register_forward_hook(lambda sa, args, out: found.append((sa, args[0], out))) for block in net.blocks
    ]
    weights = attention_weights(net, idx)
    for hook in hooks:
        hook.remove()
    assert len(found) == len(weights) == 3
    for (sa, x, out), each in zip(found, weights, strict=True):
        assert each.shape == (2, 3, 9, 9)
        assert not each.triu(1).any()
        torch.testing.assert_close(each.sum(-1), torch.ones(2, 3, 9, dtype=torch.float64))
        values = sa.qkv(x)[:, :, 48:].view(2, 9, 3, 8).transpose(1, 2)
        torch.testing.assert_close(sa.proj((each @ values).transpose(1, 2).flatten(2)), out)
    assert not any(block.sa._forward_pre_hooks for block in net.blocks)


def test_hooks_go_also_after_an_error():
    net = GPT(GPTConfig(block_size=4, n_layer=2, n_head=1, n_embd=8), 5).eval()
    with pytest.raises(UserError, match="longer than block_size"):
        attention_weights(net, torch.zeros(1, 5, dtype=torch.int64))
    assert not any(block.sa._forward_pre_hooks for block in net.blocks)


def test_surprise_is_that_of_each_character_given_those_before(monkeypatch):
    torch.manual_seed(0)
    net, idx = GPT(GPTConfig(block_size=8, n_layer=2, n_head=2, n_embd=16), 5).eval(), torch.randint(5, (1, 9))
    found = []
    monkeypatch.setattr(surprise, "draw", lambda bits, *rest: found.append((bits, *rest)))
    with torch.inference_mode():
        list(Surprise().look(net, idx, "abcdefghi"))
        expected = [-net(idx[:, :n])[0, -1].softmax(-1)[idx[0, n]].log2().item() for n in range(1, 9)]
    ((bits, text, vocab_size),) = found
    assert (text, vocab_size) == ("abcdefghi", 5)
    assert bits == pytest.approx(expected, rel=1e-4)


def images(folder):
    reader = events(folder)
    return {tag: [event.step for event in reader.Images(tag)] for tag in reader.Tags()["images"]}


def test_what_a_run_shows(tiny_run, tiny, tmp_path):
    assert images(tiny_run) == {tag: [3, 6] for tag in ("attention/layer_1", "attention/layer_2", "surprise")}
    start(tmp_path / "none", *tiny, *NONE)
    assert images(tmp_path / "none") == {}
    start(tmp_path / "logger", *tiny, "trainer.logger=false")


def test_a_bigram_has_no_attention(tiny, tmp_path):
    start(tmp_path, *[each for each in tiny if not each.startswith("model.n_")], "model=bigram")
    assert images(tmp_path) == {"surprise": [3, 6]}


def test_the_prompt(tiny, tmp_path, looks, text_file):
    """Of the validation text unless it is given; what the vocabulary lacks is left out."""
    start(tmp_path / "own", *tiny, "callbacks.attention_maps.length=40")
    text = text_file.read_text(encoding="utf-8")
    val = text[int(0.9 * len(text)) :]
    assert [(each[0], each[4]) for each in looks] == [("AttentionMaps", val[:16]), ("Surprise", val[:8])] * 2
    looks.clear()
    prompts = ["callbacks.attention_maps.prompt='道a'", "callbacks.surprise.prompt='道a'"]
    start(tmp_path / "given", *tiny, *prompts)
    assert [each[4] for each in looks] == ["a", val[:8]] * 2  # a single character is only read


@pytest.mark.parametrize("block_size", [1, 2])
def test_small_windows(block_size, tiny, tmp_path, looks):
    start(tmp_path, *tiny, f"model.block_size={block_size}", "model.positions=rotary", "model.token_shift=true")
    assert [len(each[4]) for each in looks] == [block_size, block_size + 1] * 2


def test_two_characters_make_a_vocabulary(tiny, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("$\1" * 300, encoding="utf-8")
    start(tmp_path / "run", *tiny, f"data.path={text}")
    assert images(tmp_path / "run")["surprise"] == [3, 6]


@pytest.mark.parametrize("decay", ["null", "0.3"])
def test_the_weights_that_are_validated(decay, tiny, tmp_path, looks):
    start(tmp_path, *tiny, f"callbacks.averaging.decay={decay}")
    last = state(tmp_path)
    for name, training, weight, *_ in looks[-2:]:
        assert not training, name
        assert torch.equal(weight, last["state_dict"]["net.token_embedding_table.weight"])
    if decay != "null":
        assert not torch.equal(weight, last["current_model_state"]["net.token_embedding_table.weight"])


@pytest.mark.parametrize("decay", ["null", "0.3"])
def test_training_is_left_alone(decay, tiny, tmp_path):
    """Weights, dropout and curves are bitwise those of a run without, also of one that is interrupted."""
    options = [*tiny, *STEPS, "model.dropout=0.2", f"callbacks.averaging.decay={decay}"]
    start(tmp_path / "none", *options, *NONE)
    with pytest.raises(Stopped):
        start(tmp_path / "looks", *options, *signal_at(6))
    resume(tmp_path / "looks", "+callbacks.stop=null")
    for key in ("state_dict", "optimizer_states", "random_states"):
        assert_same(state(tmp_path / "none")[key], state(tmp_path / "looks")[key])
    assert curves(tmp_path / "none") == curves(tmp_path / "looks")
    assert images(tmp_path / "looks")["surprise"] == [4, 8, 12]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions(precision, tiny, tmp_path):
    start(tmp_path, *tiny, f"trainer.precision={precision}")
    assert len(images(tmp_path)) == 3


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 5, 6, 8, 16])
@pytest.mark.parametrize("text", ["a", "a$", "ab\n\0道\u200b"])
def test_attention_pictures(heads, text):
    """A panel per head, whose colours are those of its weights; what is no number is drawn as nothing."""
    T = len(text)
    weights = np.tril(np.ones((heads, T, T), np.float32)) / np.arange(1, T + 1)[:, None]
    picture, (frame, corners) = attention_maps.draw(weights, text), attention_maps._frame(heads, text)
    assert picture.dtype == np.uint8
    assert len(set(corners)) == heads
    for left, top in corners:
        side = attention_maps.CELL * T
        panel = picture[top : top + side, left : left + side]
        assert panel.shape == (side, side, 3)
        assert (frame[top : top + side, left : left + side] == 255).all()  # nothing is drawn over
        assert (panel[0, 0] == attention_maps.coloured(np.ones(1), "Blues")).all()
    assert (attention_maps.draw(weights * np.nan, text) >= picture).all()


@pytest.mark.parametrize("many", [2, 32, 33, 96])
def test_surprise_pictures(many):
    bits = np.linspace(0, 9, many - 1)
    bits[-1] = math.inf
    picture = surprise.draw(bits, "$\n" * (many // 2) + "a" * (many % 2), 65)
    assert (picture.dtype, picture.shape[2]) == (np.uint8, 3)
    assert picture.shape[0] == surprise.TITLE + -(-many // surprise.COLUMNS) * surprise.HEIGHT + surprise.GAP
    corner = picture[surprise.TITLE, 0].tolist()
    assert corner == [surprise.NONE] * 3  # the first character
    surprise.draw(np.full(many - 1, np.nan), "a" * many, 2)


@pytest.mark.parametrize(("kind", "length"), [(AttentionMaps, 0), (AttentionMaps, 49), (Surprise, 1), (Surprise, 401)])
def test_lengths_that_are_refused(kind, length):
    with pytest.raises(UserError, match=f"length must be at least .*; got {length}"):
        kind(length=length)


@pytest.mark.parametrize("kind", [AttentionMaps, Surprise, partial(TextSamples, "folder")])
def test_a_prompt_that_hydra_reads_as_a_number(kind):
    with pytest.raises(UserError, match=r"prompt must be a text \(a number needs quotes\).*; got 1984"):
        kind(prompt=1984)


def test_one_process_draws(monkeypatch, looks):
    from lightning.pytorch.utilities import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert AtPrompt(None, 3).on_validation_end(None, None) is None

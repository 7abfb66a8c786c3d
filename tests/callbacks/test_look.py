"""Pictures of a prompt after each validation: attention maps and surprise."""

import numpy as np
import pytest
import torch
from helpers import STEPS, assert_same_end, curves, events, interrupt, resume, signal_at, start, texts

from chargpt.callbacks import look
from chargpt.callbacks.look import Surprise, attention_weights, draw_attention, draw_surprise
from chargpt.history import read_samples
from chargpt.model import GPT, GPTConfig

NONE = ["callbacks.attention_maps=null", "callbacks.surprise=null"]


@pytest.fixture
def tiny(tiny):
    """With pictures."""
    lengths = ["callbacks.attention_maps.length=4", "callbacks.surprise.length=8"]
    return [*(each for each in tiny if each not in NONE), *lengths]


@pytest.fixture
def drawn(monkeypatch):
    """The text of each picture."""
    seen = []
    for name, real in (("draw_attention", draw_attention), ("draw_surprise", draw_surprise)):

        def draw(values, text, *rest, real=real):
            seen.append(text[: values.shape[-1]] if real is draw_attention else text)
            return real(values, text, *rest)

        monkeypatch.setattr(look, name, draw)
    return seen


def images(folder):
    reader = events(folder)
    return {tag: [event.step for event in reader.Images(tag)] for tag in reader.Tags()["images"]}


def test_weights_times_values_is_the_attention_of_each_layer():
    torch.manual_seed(0)
    config = GPTConfig(block_size=12, n_layer=3, n_head=3, n_embd=24, positions="rotary", token_shift=True)
    net, found = GPT(config, 11).double().eval(), []
    for parameter in net.parameters():  # larger than at the start, when attention is nearly even
        parameter.data.normal_(std=0.5)
    for block in net.blocks:
        block.sa.register_forward_hook(lambda sa, args, out: found.append((sa, args[0], out)))
    weights = attention_weights(net, torch.randint(11, (2, 9)))
    assert len(found) == len(weights) == 3
    for (sa, x, out), each in zip(found, weights, strict=True):
        assert not each.triu(1).any()
        torch.testing.assert_close(each.sum(-1), torch.ones(2, 3, 9, dtype=torch.float64))
        values = sa.qkv(x)[:, :, 48:].view(2, 9, 3, 8).transpose(1, 2)
        torch.testing.assert_close(sa.proj((each @ values).transpose(1, 2).flatten(2)), out)
    assert not any(block.sa._forward_pre_hooks for block in net.blocks)


def test_surprise_is_that_of_each_character_given_the_earlier_ones(monkeypatch):
    torch.manual_seed(0)
    net, idx = GPT(GPTConfig(block_size=8, n_layer=2, n_head=2, n_embd=16), 5).eval(), torch.randint(5, (1, 9))
    monkeypatch.setattr(look, "draw_surprise", lambda bits, text, most: (bits.tolist(), most))
    with torch.inference_mode():
        [(_, (bits, most))] = Surprise().draw(net, idx, "a" * 9)
        expected = [-net(idx[:, :n])[0, -1].softmax(-1)[idx[0, n]].log2().item() for n in range(1, 9)]
    assert bits == pytest.approx(expected, rel=1e-4)
    assert most == np.log2(5)


def test_a_bigram_has_no_attention(tiny, tmp_path):
    start(tmp_path, *[each for each in tiny if not each.startswith("model.n_")], "model=bigram")
    assert images(tmp_path) == {"surprise": [3, 6]}


def test_the_prompt_and_the_beginning_of_the_validation_text_in_its_place(tiny, tmp_path, drawn, text_file):
    """Characters outside the vocabulary are left out, and nothing predicts a single one."""
    prompts = ["callbacks.attention_maps.prompt='道green'", "callbacks.surprise.prompt='道a'"]
    start(tmp_path, *tiny, *prompts, "model.n_layer=1", "callbacks.surprise.length=40")
    text = text_file.read_text(encoding="utf-8")
    assert drawn == ["gree", text[int(0.9 * len(text)) :][:17]] * 2


def test_a_context_and_a_vocabulary_of_the_smallest_size_in_half_precision(tiny, tmp_path, drawn):
    """One character, of two, of which one is a control character."""
    text = tmp_path / "text.txt"
    text.write_text("$\1" * 300, encoding="utf-8")
    smallest = ["model.block_size=1", "model.token_shift=true", "trainer.precision=bf16-true"]
    start(tmp_path / "run", *tiny, f"data.path={text}", *smallest)
    assert drawn == ["$", "$", "$\1"] * 2
    assert images(tmp_path / "run")["surprise"] == [3, 6]


def test_training_is_bitwise_the_same_without_pictures(tiny, tmp_path):
    options = [*tiny, *STEPS, "model.dropout=0.2"]
    start(tmp_path / "none", *options, *NONE)
    interrupt(tmp_path / "looks", *options, *signal_at(6))
    resume(tmp_path / "looks", "+callbacks.stop=null")
    assert_same_end(tmp_path / "none", tmp_path / "looks")
    assert curves(tmp_path / "none") == curves(tmp_path / "looks")
    tags = ("attention/layer_1", "attention/layer_2", "surprise")
    assert images(tmp_path / "looks") == {tag: [4, 8, 12] for tag in tags}


@pytest.mark.parametrize(("heads", "text"), [(1, "a"), (5, "a$"), (16, "ab\n\0道\u200b")])
def test_an_attention_map_has_a_panel_per_head_and_labels_at_its_edges(heads, text):
    weights = np.tril(np.ones((heads, len(text), len(text)))) / np.arange(1, len(text) + 1)[:, None]
    figure = draw_attention(weights, text)
    assert [panel.get_title() for panel in figure.axes] == [f"head {n + 1}" for n in range(heads)]
    for panel, each in zip(figure.axes, weights, strict=True):
        assert np.array_equal(panel.images[0].get_array(), np.sqrt(each))
    labels = [each.get_text() for panel in figure.axes for each in panel.texts]
    assert set(labels) == {{"\n": "↵", "\0": r"\x00", "\u200b": r"\u200b"}.get(each, each) for each in text}


@pytest.mark.parametrize("many", [2, 32, 33])
def test_a_picture_of_surprise_has_each_character_on_its_colour(many):
    text, bits = "$\n" * (many // 2) + "a" * (many % 2), np.linspace(0, 9, many - 1)
    figure = draw_surprise(bits, text, 6.0)
    panel = figure.axes[0]
    cells = panel.images[0].get_array().flatten()
    assert cells.mask[0]  # nothing predicts the first character
    assert np.array_equal(cells[1:many], bits)
    assert [each.get_text() for each in panel.texts] == [{"\n": "↵"}.get(each, each) for each in text]


def test_a_prompt_of_unknown_characters_is_replaced_by_the_first_of_the_vocabulary(tiny, tmp_path):
    """Here, the line break. TensorBoard shows the text unchanged, as an indented block."""
    start(tmp_path / "run", *tiny, "callbacks.text_samples.prompt='道'")
    samples = read_samples(tmp_path / "run")
    assert [(sample.step, len(sample.text), sample.text[0]) for sample in samples] == [(3, 9, "\n"), (6, 9, "\n")]
    assert texts(tmp_path / "run", "sample")[0][1] == "\n".join(f"    {line}" for line in samples[0].text.split("\n"))

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import QUIET, assert_same_end, curves, interrupt, resume, signal_at, start
from hypothesis import given
from hypothesis import strategies as st

from chargpt.batches import IGNORED, DataConfig, RandomBlocks, SequentialBlocks, parts_of
from chargpt.corpus import encode_text
from chargpt.data import CharDataModule
from chargpt.errors import UserError
from chargpt.sources import SOURCES, Text

IDS = np.arange(1000, dtype=np.uint16)  # each id is its own place, so a batch tells where it came from


def random_blocks(rank=0, world=1, **config):
    return RandomBlocks(IDS, DataConfig(block_size=8, **config), len(IDS), rank, world)


def test_blocks_start_where_they_always_did():
    """At places that follow from (seed, step): were that to change, runs could not be repeated."""
    blocks = random_blocks(batch_size=32, seed=5)
    for step in (0, 1, 1000):
        inputs, targets = blocks[step]
        starts = np.random.default_rng((5, step)).integers(0, len(IDS) - 8, size=(32, 1))
        assert np.array_equal(inputs, starts + np.arange(8))
        assert torch.equal(targets, inputs + 1)
        assert inputs.dtype == targets.dtype == torch.int64


def test_random_characters_replace_a_share_of_the_inputs():
    """Any of the vocabulary, anywhere; the blocks and the targets stay, and a step gives the same batch again."""
    plain, replaced = random_blocks(batch_size=500), random_blocks(batch_size=500, replace=0.1)
    (inputs, targets), (noisy, expected) = plain[7], replaced[7]
    assert torch.equal(targets, expected)
    changed = noisy != inputs
    assert 0.08 < changed.float().mean() < 0.12
    assert noisy[changed].min() < 50
    assert 950 < noisy[changed].max() < len(IDS)
    assert torch.equal(noisy, replaced[7][0])
    assert not torch.equal(changed, replaced[8][0] != plain[8][0])


@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 100))
def test_several_ranks_share_the_batch_of_one(world, batch, step):
    """Their slices, one after the other, are the batch of one rank that takes all blocks."""
    whole = random_blocks(batch_size=world * batch, replace=0.5)[step]
    slices = [random_blocks(rank, world, batch_size=batch, replace=0.5)[step] for rank in range(world)]
    for part, expected in zip(zip(*slices, strict=True), whole, strict=True):
        assert torch.equal(torch.cat(part), expected)


@given(length=st.integers(2, 300), block=st.integers(1, 40), batch=st.integers(1, 7), world=st.integers(1, 3))
def test_validation_predicts_every_target_once(length, block, batch, world):
    """In batches of one shape, equally many on each rank; the rest is padding."""
    ids = np.arange(length)
    shares = [SequentialBlocks(ids, block, batch, rank, world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    targets, shapes = [], set()
    for item in range(len(shares[0])):
        for share in shares:
            inputs, predicted = share[item]
            shapes |= {inputs.shape, predicted.shape}
            assert inputs.min() >= 0
            real = predicted != IGNORED
            assert torch.equal(predicted[real], inputs[real] + 1)
            targets += predicted[real].tolist()
    assert targets == list(range(1, length))
    assert len(shapes) == 1
    assert shapes.pop()[1] == block


def data_of(expected=None, **config):
    """A file's data module, set up."""
    data = CharDataModule(DataConfig(**{"source": "file", "block_size": 16} | config), expected)
    data.setup()
    return data


@pytest.mark.parametrize(("accumulate", "at"), [(1, 4), (2, 6)])
def test_epochs_of_a_few_batches(accumulate, at, tiny, tmp_path, monkeypatch):
    """Interrupted at the end of one, and in one that ends within an accumulated step. No batch is left out."""
    seen, real = [], RandomBlocks.__getitem__
    monkeypatch.setattr(RandomBlocks, "__getitem__", lambda self, step: seen.append(step) or real(self, step))
    epochs = ["trainer.limit_train_batches=5", f"trainer.accumulate_grad_batches={accumulate}"]
    settings = [*tiny, *QUIET, *epochs, "model.dropout=0.1"]
    start(tmp_path / "once", *settings)
    assert seen == list(range(len(seen)))
    interrupt(tmp_path / "twice", *settings, *signal_at(at))
    resume(tmp_path / "twice", "+callbacks.stop=null")
    assert_same_end(tmp_path / "once", tmp_path / "twice")
    assert curves(tmp_path / "once") == curves(tmp_path / "twice")


def test_split_too_short(tmp_path):
    (tmp_path / "short.txt").write_text("xy" * 50)
    with pytest.raises(UserError, match=r"short\.txt has 10 characters of validation text, but .*block_size=16"):
        data_of(path=f"{tmp_path}/short.txt")


def test_separate_texts(tmp_path):
    """All of the first text trains, and the vocabulary is that of all texts."""
    texts = {name: f"one of many {word} lines\n" * 9 for name, word in (("a", "zebra"), ("v", "quiver"), ("t", "5"))}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    data = data_of(path=f"{tmp_path}/a", val_path=f"{tmp_path}/v", test_path=[f"{tmp_path}/t"])
    ids = (data.train_ids, data.val_ids, data.test_ids)
    assert [data.tokenizer.decode(each[:]) for each in ids] == list(texts.values())
    assert data.tokenizer.characters == "".join(sorted(set("".join(texts.values()))))
    assert set(data.identities) == {f"{part}{key}" for part in ("", "val_", "test_") for key in ("name", "sha256")}
    resumed = data_of(data.identities)
    assert resumed.identities == data.identities
    assert np.array_equal(resumed.test_ids[:], data.test_ids[:])
    only = {key: data.identities[key] for key in ("name", "sha256")}
    with pytest.raises(UserError, match=r"the run began without data\.val_path; start a new run for it"):
        data_of(only, val_path=f"{tmp_path}/v")


@pytest.mark.parametrize("others", [{"val_path": "all/b.txt"}, {"val_path": "v.txt", "test_path": ["../texts/v.txt"]}])
def test_a_text_has_one_part(others, tmp_path, monkeypatch):
    """A loss on what the model was trained on would mean nothing."""
    (tmp_path / "texts" / "all").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "texts")
    for name in ("all/a.txt", "all/b.txt", "v.txt"):
        Path(name).write_text(f"a few lines of {name}\n" * 9)
    with pytest.raises(UserError, match=r"[bv]\.txt is in two of data\.path, val_path and test_path"):
        data_of(path="all", **others)


def test_the_text_of_a_resumed_run(text_file, tmp_path, monkeypatch):
    """It comes from the cache, or from a path or a source that gives the same one."""
    content = text_file.read_text(encoding="utf-8") + str(tmp_path)
    (tmp_path / "known.txt").write_text(content, encoding="utf-8")
    known = {"name": "a known text", "sha256": encode_text(Text("a known text", [tmp_path / "known.txt"])).sha256}
    lost = {"name": "a text", "sha256": "0" * 64}
    (tmp_path / "known.txt").rename(tmp_path / "again.txt")
    assert data_of(known, path=f"{tmp_path}/again.txt").corpus.name.endswith("again.txt")
    with pytest.raises(UserError, match=r"verse\.txt is not the text that the run began with, or has changed; start"):
        data_of(known, path=str(text_file))
    with pytest.raises(UserError, match=r"the text of the run \(a text\) is not in your cache: add data\.path="):
        data_of(lost)
    monkeypatch.setitem(SOURCES, "shakespeare", lambda path: Text("tiny Shakespeare", [text_file]))
    with pytest.raises(UserError, match=r"^tiny Shakespeare is not the text that the run began with"):
        data_of(lost, source="shakespeare")
    for source in ("file", "shakespeare"):
        monkeypatch.setitem(SOURCES, source, None)  # it is not asked
        assert data_of(known, source=source).identities == known


@pytest.mark.parametrize(
    ("split", "length", "lengths"),
    [
        ([0.9, 0.1], 1_115_394, [1_003_854, 111_540]),  # the lecture's
        ([0.9, 0.05, 0.05], 100_000_000, [90_000_000, 5_000_000, 5_000_000]),  # text8's
        ([0.6, 0.2, 0.2], 10, [6, 2, 2]),
    ],
)
def test_where_a_text_is_cut(split, length, lengths):
    parts = list(parts_of(range(length), split).values())
    assert [len(part) for part in parts] == lengths
    assert [part[0] for part in parts] == [0, *(part[-1] + 1 for part in parts[:-1])]

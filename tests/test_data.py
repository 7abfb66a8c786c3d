from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chargpt.data import CharDataModule, RandomBlocks, SequentialBlocks
from chargpt.errors import UserError

IDS = np.arange(1000, dtype=np.uint16)  # each id is its own place, so a batch tells where it came from


def test_targets_are_the_next_characters():
    inputs, targets = RandomBlocks(IDS, block_size=8, batch_size=5, seed=1)[3]
    assert inputs.shape == targets.shape == (5, 8)
    assert inputs.dtype == targets.dtype == torch.int64
    assert torch.equal(targets, inputs + 1)
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(8))


def test_a_batch_follows_from_seed_rank_and_step_alone():
    def batch(seed=1, rank=0, step=7):
        return RandomBlocks(IDS, 8, 32, seed, rank)[step][0]

    again = RandomBlocks(IDS, 8, 32, 1)
    for step in range(20):
        again[step]
    assert torch.equal(batch(), again[7][0])
    for other in (batch(seed=2), batch(rank=1), batch(step=8)):
        assert not torch.equal(batch(), other)


def test_random_blocks_reach_both_ends():
    ids = np.arange(10)
    seen = torch.cat([RandomBlocks(ids, 8, 64, 0)[step][0][:, 0] for step in range(5)])
    assert set(seen.tolist()) == {0, 1}  # 10 characters hold two blocks of 8 inputs and a last target


@given(length=st.integers(2, 300), block=st.integers(1, 40), batch=st.integers(1, 7), world=st.integers(1, 3))
def test_validation_predicts_every_target_once(length, block, batch, world):
    ids = np.arange(length)
    targets = []
    for rank in range(world):
        blocks = SequentialBlocks(ids, block, batch, rank, world)
        for item in range(len(blocks)):
            inputs, predicted = blocks[item]
            assert inputs.shape == predicted.shape
            assert inputs.shape[0] <= batch
            assert inputs.shape[1] <= block
            assert torch.equal(predicted, inputs + 1)
            targets += predicted.flatten().tolist()
    assert sorted(targets) == list(range(1, length))
    if world == 1:
        assert targets == list(range(1, length))


def trainer(global_step=0, accumulate=1):
    device = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(
        global_step=global_step, accumulate_grad_batches=accumulate, global_rank=0, world_size=1, strategy=device
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("step", "accumulate"), [(0, 1), (5, 1), (5, 3)])
def test_the_loader_goes_on_where_training_stands(text_file, workers, step, accumulate):
    data = CharDataModule("file", str(text_file), block_size=16, batch_size=4, num_workers=workers)
    data.setup()
    data.trainer = trainer(step, accumulate)
    expected = RandomBlocks(data.train_ids, 16, 4, data.seed)
    for n, (inputs, targets) in zip(range(5), data.train_dataloader(), strict=False):
        assert torch.equal(inputs, expected[step * accumulate + n][0])
        assert torch.equal(targets, expected[step * accumulate + n][1])


def test_split(text_file):
    data = CharDataModule("file", str(text_file), val_fraction=0.1, block_size=16)
    data.setup()
    assert len(data.train_ids) == int(0.9 * len(data.corpus.ids))
    assert data.corpus.tokenizer.decode([*data.train_ids, *data.val_ids]) == text_file.read_text()


def test_split_too_short(tmp_path):
    (tmp_path / "short.txt").write_text("x" * 100)
    data = CharDataModule("file", str(tmp_path / "short.txt"), block_size=16)
    with pytest.raises(UserError, match=r"validation split .* has 10 characters, but model\.block_size=16 needs 17"):
        data.setup()
    data = CharDataModule("file", str(tmp_path / "short.txt"), val_fraction=0.9, block_size=16)
    with pytest.raises(UserError, match="training split"):
        data.setup()


@pytest.mark.parametrize(
    "bad", [{"val_fraction": 0.0}, {"val_fraction": 1.0}, {"batch_size": 0}, {"num_workers": -1}, {"seed": -1}]
)
def test_out_of_range(bad):
    (name,) = bad
    with pytest.raises(UserError, match=rf"data\.{name} must be"):
        CharDataModule(**bad)

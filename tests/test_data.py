from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chargpt.blocks import DataConfig, RandomBlocks, SequentialBlocks
from chargpt.data import CharDataModule
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
        return RandomBlocks(IDS, 8, 32, seed, rank, world_size=2)[step][0]

    again = RandomBlocks(IDS, 8, 32, 1, world_size=2)
    for step in range(20):
        again[step]
    assert torch.equal(batch(), again[7][0])
    for other in (batch(seed=2), batch(rank=1), batch(step=8)):
        assert not torch.equal(batch(), other)


def test_one_device_sees_what_it_always_saw():
    """Where blocks start follows from (seed, 0, step): were that to change, runs could not be made again."""
    blocks = RandomBlocks(IDS, 8, 32, seed=5)
    for step in (0, 1, 1000):
        starts = np.random.default_rng((5, 0, step)).integers(0, len(IDS) - 8, size=(32, 1))
        assert np.array_equal(blocks[step][0], starts + np.arange(8))


@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 100))
def test_several_devices_see_what_one_would(world, batch, step):
    """Their slices, one after the other, are the batch of one device that takes all blocks."""
    whole = RandomBlocks(IDS, 8, world * batch, seed=3)[step]
    slices = [RandomBlocks(IDS, 8, batch, 3, rank, world)[step] for rank in range(world)]
    for part, expected in zip(zip(*slices, strict=True), whole, strict=True):
        assert torch.equal(torch.cat(part), expected)


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


def trainer(global_step=0, accumulate=1, rank=0, world_size=1):
    device = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(
        global_step=global_step,
        accumulate_grad_batches=accumulate,
        global_rank=rank,
        world_size=world_size,
        strategy=device,
    )


def data_of(file, **config):
    return CharDataModule(DataConfig(source="file", path=str(file), **{"block_size": 16} | config))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("step", "accumulate"), [(0, 1), (5, 1), (5, 3)])
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2)])
def test_the_loader_goes_on_where_training_stands(text_file, workers, step, accumulate, rank, world_size):
    data = data_of(text_file, batch_size=4, num_workers=workers)
    data.setup()
    data.trainer = trainer(step, accumulate, rank, world_size)
    expected = RandomBlocks(data.train_ids, 16, 4, data.config.seed, rank, world_size)
    for n, (inputs, targets) in zip(range(5), data.train_dataloader(), strict=False):
        assert torch.equal(inputs, expected[step * accumulate + n][0])
        assert torch.equal(targets, expected[step * accumulate + n][1])
    assert n == 4


def test_validation_is_shared_among_devices(text_file):
    data, seen = data_of(text_file, batch_size=4), []
    data.setup()
    for rank in range(2):
        data.trainer = trainer(rank=rank, world_size=2)
        seen.append(sum(targets.numel() for _, targets in data.val_dataloader()))
    assert sum(seen) == len(data.val_ids) - 1
    assert min(seen) > 0


def test_split(text_file):
    data = data_of(text_file, val_fraction=0.1)
    data.setup()
    assert len(data.train_ids) == int(0.9 * len(data.corpus.ids))
    assert data.corpus.tokenizer.decode([*data.train_ids, *data.val_ids]) == text_file.read_text()


def test_split_too_short(tmp_path):
    (tmp_path / "short.txt").write_text("x" * 100)
    data = data_of(tmp_path / "short.txt")
    with pytest.raises(UserError, match=r"validation split .* has 10 characters, but model\.block_size=16 needs 17"):
        data.setup()
    data = data_of(tmp_path / "short.txt", val_fraction=0.9)
    with pytest.raises(UserError, match="training split"):
        data.setup()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"val_fraction": 0.0}, r"data\.val_fraction must be between 0 and 1"),
        ({"val_fraction": 1.0}, r"data\.val_fraction must be"),
        ({"val_fraction": float("nan")}, r"data\.val_fraction must be"),
        ({"block_size": 0}, r"data\.block_size must be at least 1"),
        ({"batch_size": 0}, r"data\.batch_size must be at least 1"),
        ({"num_workers": -1}, r"data\.num_workers must be at least 0"),
        ({"seed": -1}, r"data\.seed must be at least 0"),
        ({"source": "shakespear"}, r"data\.source must be one of shakespeare, .*; got 'shakespear'"),
        ({"path": "my.txt"}, r"data\.path is for a text of your own: data=file data\.path=my\.txt"),
        ({"fallback": "moby"}, r"data\.fallback must be one of shakespeare, .*; got 'moby'"),
    ],
)
def test_out_of_range(bad, message):
    with pytest.raises(UserError, match=message):
        DataConfig(**bad)

"""Blocks of characters: at random places for training, one after the other for validation."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from chargpt.errors import UserError, one_line
from chargpt.settings import LARGEST, check_ranges
from chargpt.sources import SOURCES

Batch = tuple[Tensor, Tensor]  # inputs and targets, both (B, T) int64: each target is the character after its input


@dataclass
class DataConfig:
    """Which text a run is trained on, and in which blocks.

    Attributes:
        source, path, fallback: see `chargpt.sources.find_text`.
        val_fraction: the share of the text, at its end, that validates.
        block_size: characters of context (T).
        batch_size: blocks per batch (B), on each device.
        num_workers: processes that prepare training batches; 0 prepares them in the training process, which is
            quicker than moving them between processes unless the text lies on a slow disk.
        seed: of the random blocks.

    Raises:
        UserError: a value is out of range.
    """

    source: str = "shakespeare"
    path: str | None = None
    fallback: str | None = None
    val_fraction: float = 0.1
    block_size: int = 256
    batch_size: int = 64
    num_workers: int = 0
    seed: int = 1337

    def __post_init__(self) -> None:
        for name, source in (("source", self.source), ("fallback", self.fallback or "file")):
            if source not in SOURCES:
                raise UserError(f"data.{name} must be one of {', '.join(SOURCES)}; got {source!r}")
        if self.path is not None and "file" not in (self.source, self.fallback):
            raise UserError(f"data.path is for a text of your own: data=file data.path={one_line(self.path)}")
        if not 0 < self.val_fraction < 1:
            raise UserError(f"data.val_fraction must be between 0 and 1, both excluded; got {self.val_fraction}")
        sizes = {"block_size": (1, LARGEST), "batch_size": (1, LARGEST), "num_workers": (0, 256)}
        check_ranges("data", self, **sizes, seed=(0, 2**63 - 1))


def split_at(length: int, val_fraction: float) -> int:
    """Where a text of that many characters is cut: what comes before trains, the rest validates."""
    return int((1 - val_fraction) * length)


class RandomBlocks(Dataset[Batch]):
    """Training batches: item `step` holds `batch_size` blocks that start at random places of `ids`.

    An item is a pure function of (seed, step), so that a resumed run goes on with the batches it would have seen,
    whatever the number of loader workers. Of several ranks each takes its slice of one draw, so that two ranks with 32
    blocks each see what one with 64 sees. There is no last item.
    """

    def __init__(
        self, ids: np.ndarray, block_size: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
    ):
        self.ids = ids
        self.block_size = block_size
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng(
            (self.seed, 0, step)
        )  # the 0 is a leftover: without it every run's batches would change
        starts = rng.integers(0, len(self.ids) - self.block_size, size=(self.world_size * self.batch_size, 1))
        starts = starts[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]
        blocks = torch.from_numpy(self.ids[starts + np.arange(self.block_size + 1)].astype(np.int64))  # (B, T + 1)
        return blocks[:, :-1], blocks[:, 1:]


class SequentialBlocks(Dataset[Batch]):
    """Validation batches: all of `ids` in order, every character but the first a target exactly once.

    The text is cut into blocks of `block_size`, `batch_size` of them per item; where the last block is short it is an
    item of its own. Of several ranks each takes every `world_size`-th item. One for which none is left has an item
    without blocks: it takes part in what the others do at the end.
    """

    def __init__(self, ids: np.ndarray, block_size: int, batch_size: int, rank: int = 0, world_size: int = 1):
        self.ids = ids
        self.block_size = block_size
        self.span = block_size * batch_size  # characters an item predicts
        targets = len(ids) - 1
        full = targets - targets % block_size  # targets that lie in whole blocks
        starts = [*range(0, full, self.span), *([full] if full < targets else [])]
        self.ranges = [
            (start, min(start + self.span, full) if start < full else targets) for start in starts[rank::world_size]
        ] or [(0, 0)]

    def __len__(self) -> int:
        return len(self.ranges)

    def __getitem__(self, item: int) -> Batch:
        start, stop = self.ranges[item]
        text = torch.from_numpy(self.ids[start : stop + 1].astype(np.int64))
        block = min(self.block_size, stop - start) or self.block_size
        return text[:-1].view(-1, block), text[1:].view(-1, block)

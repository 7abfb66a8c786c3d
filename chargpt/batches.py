"""The configuration of the data, and blocks of text: random ones for training, consecutive ones for validation.

`DataConfig` is here, and not beside the LightningDataModule, since Lightning takes seconds to import: `train.py` needs
the configuration for `--help`, and scoring does without Lightning.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from chargpt.corpus import Ids
from chargpt.errors import UserError
from chargpt.settings import require, require_at_least, require_split
from chargpt.sources import SOURCES
from chargpt.tokenizer import KINDS

Batch = tuple[Tensor, Tensor]  # inputs and targets, both (B, T) int64: each target is the character after its input
IGNORED = -100  # the target of padding: cross entropy's default `ignore_index`
PART_NAMES = {"train": "training", "val": "validation", "test": "test"}  # the parts of a text, in this order


@dataclass
class DataConfig:
    """Which text a run is trained on, and in which blocks.

    Attributes:
        source: one of `chargpt.sources.SOURCES`.
        path: of the source `file`, see `chargpt.sources.find_files`.
        val_path, test_path: separate texts to validate on, or to test on; like `path`.
        split: the training, validation and, if there are three, test shares of the text. With `val_path` all of the
            text trains.
        encoding: of the files, for a text of characters.
        tokenizer: one of `chargpt.tokenizer.KINDS`.
        block_size: characters of context (T).
        batch_size: blocks per batch (B), on each device.
        replace: the share of the training inputs that random characters replace, so that a model that sees its text
            many times learns less of it by heart. Targets stay.
        seed: of the random blocks.
    """

    source: str = "shakespeare"
    path: Any = None  # str | list[str] | None, which Hydra's schemas cannot express
    val_path: Any = None
    test_path: Any = None
    split: list[float] = field(default_factory=lambda: [0.9, 0.1])
    encoding: str = "utf-8"
    tokenizer: str = "characters"
    block_size: int = 256
    batch_size: int = 64
    replace: float = 0.0
    seed: int = 1337

    def __post_init__(self) -> None:
        for name in ("path", "val_path", "test_path"):
            value = getattr(self, name)
            texts = value if isinstance(value, list) else [value or ""]
            rule = "a text or a list of texts, in quotes if it looks like a number"
            require(all(isinstance(each, str) for each in texts), f"data.{name}", rule, value)
        require(self.source in SOURCES, "data.source", f"one of {', '.join(SOURCES)}", self.source)
        if self.path is not None and self.source != "file":
            raise UserError(f"data.path is for a text of your own: data=file data.path={self.path}")
        require(self.tokenizer in KINDS, "data.tokenizer", f"one of {', '.join(KINDS)}", self.tokenizer)
        require_split("data", self.split)
        if self.val_path is not None or self.test_path is not None:
            require(len(self.split) == 2, "data.split", "two shares with data.val_path or data.test_path", self.split)
        require_at_least(1, self, "data", "block_size", "batch_size")
        require(0 <= self.replace < 1, "data.replace", "at least 0 and below 1", self.replace)
        require_at_least(0, self, "data", "seed")


def parts_of(ids: np.ndarray, split: list[float]) -> dict[str, np.ndarray]:
    """The training, validation and, with three shares, test part of a text's ids, by their keys in `PART_NAMES`."""
    first, last = int(split[0] * len(ids)), len(ids) - (int(split[2] * len(ids)) if len(split) == 3 else 0)
    return dict(zip(PART_NAMES, [ids[:first], ids[first:last], ids[last:]][: len(split)], strict=False))


class RandomBlocks(Dataset[Batch]):
    """Training batches: item `step` holds `batch_size` blocks that start at random places of `ids`.

    An item is a pure function of (seed, step): a resumed run sees the batches of an uninterrupted one. Each rank takes
    its slice of one draw: two ranks with 32 blocks each see the batches of one rank with 64. It has no length, as every
    step is an item. A share of `config.replace` of the inputs is replaced by random ids below `vocab_size`.
    """

    def __init__(self, ids: Ids, config: DataConfig, vocab_size: int, rank: int = 0, world_size: int = 1):
        self.ids, self.config, self.vocab_size = ids, config, vocab_size
        self.rows = world_size * config.batch_size  # of all ranks
        self.mine = slice(rank * config.batch_size, (rank + 1) * config.batch_size)

    def __getitem__(self, step: int) -> Batch:
        rng, T = np.random.default_rng((self.config.seed, step)), self.config.block_size
        starts = rng.integers(0, len(self.ids) - T, size=(self.rows, 1))[self.mine]
        blocks = self.ids[starts + np.arange(T + 1)].astype(np.int64)  # (B, T + 1)
        inputs, targets = blocks[:, :-1], blocks[:, 1:]
        if self.config.replace:
            others = rng.integers(0, self.vocab_size, size=(self.rows, T))[self.mine]
            inputs = np.where(rng.random((self.rows, T))[self.mine] < self.config.replace, others, inputs)
        return torch.from_numpy(inputs), torch.from_numpy(targets)


class SequentialBlocks(Dataset[Batch]):
    """All of `ids` in order, every id but the first a target exactly once: for validation, and to score a text.

    An item is a batch of windows that begin `stride` apart (by default `block_size`). Only the last `stride` ids of a
    window are targets (of the first window: all). Ranks take items in turn. The end is padded, with `IGNORED` as
    targets, so that all items have one shape and all ranks equally many items.
    """

    def __init__(
        self, ids: Ids, block_size: int, batch_size: int, rank: int = 0, world_size: int = 1, stride: int | None = None
    ):
        self.ids, self.block_size, self.stride = ids, block_size, stride or block_size
        self.rank, self.world_size = rank, world_size
        self.windows = 1 + math.ceil(max(0, len(ids) - 1 - block_size) / self.stride)
        self.batch_size = min(batch_size, self.windows)

    def __len__(self) -> int:
        return math.ceil(self.windows / (self.batch_size * self.world_size))

    def __getitem__(self, item: int) -> Batch:
        first = (item * self.world_size + self.rank) * self.batch_size * self.stride
        length = (self.batch_size - 1) * self.stride + self.block_size + 1
        text = torch.from_numpy(self.ids[first : first + length].astype(np.int64))
        windows = F.pad(text, (0, length - len(text)), value=IGNORED).unfold(0, self.block_size + 1, self.stride)
        targets = windows[:, 1:].clone()  # (B, T)
        targets[int(first == 0) :, : self.block_size - self.stride] = IGNORED
        return windows[:, :-1].clamp(min=0), targets

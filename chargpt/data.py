"""Blocks of characters for training and validation."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from chargpt.corpus import Corpus, load_corpus
from chargpt.errors import UserError

Batch = tuple[Tensor, Tensor]  # inputs and targets, both (B, T) int64: each target is the character after its input


class RandomBlocks(Dataset[Batch]):
    """Training batches: item `step` holds `batch_size` blocks that start at random places of `ids`.

    An item is a pure function of (seed, rank, step), so that a resumed run goes on with the batches it would have
    seen, whatever the number of loader workers. There is no last item.
    """

    def __init__(self, ids: np.ndarray, block_size: int, batch_size: int, seed: int, rank: int = 0):
        self.ids = ids
        self.block_size = block_size
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng((self.seed, self.rank, step))
        starts = rng.integers(0, len(self.ids) - self.block_size, size=(self.batch_size, 1))
        blocks = torch.from_numpy(self.ids[starts + np.arange(self.block_size + 1)].astype(np.int64))  # (B, T + 1)
        return blocks[:, :-1], blocks[:, 1:]


class SequentialBlocks(Dataset[Batch]):
    """Validation batches: all of `ids` in order, every character but the first a target exactly once.

    The text is cut into blocks of `block_size`, `batch_size` of them an item; where the last block is short it is an
    item of its own. Of several ranks each takes every `world_size`-th item.
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
        ]

    def __len__(self) -> int:
        return len(self.ranges)

    def __getitem__(self, item: int) -> Batch:
        start, stop = self.ranges[item]
        text = torch.from_numpy(self.ids[start : stop + 1].astype(np.int64))
        block = min(self.block_size, stop - start)
        return text[:-1].view(-1, block), text[1:].view(-1, block)


class StepsFrom(Sampler[int]):
    """first(), first() + 1, ... without end; `first` is asked each time that an iteration begins."""

    def __init__(self, first: Callable[[], int]):
        self.first = first

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first())


class CharDataModule(LightningDataModule):
    """Random blocks of a text for training, the rest of it in order for validation.

    Args:
        source, path, fallback: which text; see `chargpt.corpus.load_corpus`.
        val_fraction: the share of the text, at its end, that validates.
        block_size: characters of context (T).
        batch_size: blocks a batch (B).
        num_workers: processes that prepare training batches; 0 prepares them in the training process, which is
            quicker than moving them between processes unless the text lies on a slow disk.
        seed: of the random blocks.

    Raises:
        UserError: a value is out of range, or (in `setup`) the text cannot be used.
    """

    def __init__(
        self,
        source: str = "shakespeare",
        path: str | None = None,
        fallback: str | None = None,
        val_fraction: float = 0.1,
        block_size: int = 256,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 1337,
    ):
        super().__init__()
        if not 0 < val_fraction < 1:
            raise UserError(f"data.val_fraction must be between 0 and 1, both excluded; got {val_fraction}")
        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0), ("seed", seed, 0)):
            if value < least:
                raise UserError(f"data.{name} must be at least {least}; got {value}")
        self.source, self.path, self.fallback = source, path, fallback
        self.val_fraction = val_fraction
        self.block_size = block_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.corpus: Corpus | None = None

    def setup(self, stage: str | None = None) -> None:
        """Load the text. Every process may do so at the same time, and training does so before there is a Trainer,
        since the model's size depends on the vocabulary; later calls do nothing."""
        if self.corpus is not None:
            return
        corpus = load_corpus(self.source, self.path, self.fallback)
        split = int((1 - self.val_fraction) * len(corpus.ids))
        self.train_ids, self.val_ids = corpus.ids[:split], corpus.ids[split:]
        for name, ids in (("training", self.train_ids), ("validation", self.val_ids)):
            if len(ids) < self.block_size + 1:
                raise UserError(
                    f"the {name} split of {corpus.name} has {len(ids):,} characters, but model.block_size="
                    f"{self.block_size} needs {self.block_size + 1:,}: use a longer text or a smaller block_size"
                )
        self.corpus = corpus

    def train_dataloader(self) -> DataLoader:
        blocks = RandomBlocks(self.train_ids, self.block_size, self.batch_size, self.seed, self.trainer.global_rank)
        return self._loader(blocks, StepsFrom(self._batches_seen), self.num_workers)

    def val_dataloader(self) -> DataLoader:
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        return self._loader(SequentialBlocks(self.val_ids, self.block_size, self.batch_size, rank, world_size))

    def _batches_seen(self) -> int:
        return self.trainer.global_step * self.trainer.accumulate_grad_batches

    def _loader(self, blocks: Dataset[Batch], sampler: Sampler | None = None, num_workers: int = 0) -> DataLoader:
        return DataLoader(
            blocks,
            batch_size=None,  # an item is a batch
            sampler=sampler,
            num_workers=num_workers,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
        )

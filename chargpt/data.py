"""The LightningDataModule: a text, and the blocks of it that a step needs."""

import itertools
from collections.abc import Callable, Iterator

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from chargpt.blocks import Batch, DataConfig, RandomBlocks, SequentialBlocks
from chargpt.corpus import Corpus, encode_text
from chargpt.errors import UserError
from chargpt.sources import find_text


class StepsFrom(Sampler[int]):
    """first(), first() + 1, ... without end; `first` is asked each time that an iteration begins."""

    def __init__(self, first: Callable[[], int]):
        self.first = first

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first())


class CharDataModule(LightningDataModule):
    """Random blocks of a text for training, the rest of it in order for validation.

    Attributes:
        config: which text, in which blocks.
        corpus: the encoded text, once `setup` has run, as are the next three.
        source: where it came from: `config.source`, or its fallback.
        train_ids, val_ids: its two splits.
    """

    def __init__(self, config: DataConfig):
        super().__init__()
        self.config = config

    def setup(self, stage: str | None = None) -> None:
        """Load the text. Every process may do so at the same time, and training does so before there is a Trainer,
        since the model's size depends on the vocabulary; later calls do nothing.

        Raises:
            UserError: the text cannot be used.
        """
        if hasattr(self, "corpus"):
            return
        config = self.config
        text = find_text(config.source, config.path, config.fallback)
        self.source = text.source
        corpus = encode_text(text)
        split = int((1 - config.val_fraction) * len(corpus.ids))
        self.train_ids, self.val_ids = corpus.ids[:split], corpus.ids[split:]
        for name, ids in (("training", self.train_ids), ("validation", self.val_ids)):
            if len(ids) < config.block_size + 1:
                raise UserError(
                    f"the {name} split of {corpus.name} has {len(ids):,} characters, but model.block_size="
                    f"{config.block_size} needs {config.block_size + 1:,}: use a longer text or a smaller block_size"
                )
        self.corpus: Corpus = corpus

    def train_dataloader(self) -> DataLoader:
        config, place = self.config, self._place()
        blocks = RandomBlocks(self.train_ids, config.block_size, config.batch_size, config.seed, *place)
        return self._loader(blocks, StepsFrom(self._batches_seen), config.num_workers)

    def val_dataloader(self) -> DataLoader:
        config, place = self.config, self._place()
        return self._loader(SequentialBlocks(self.val_ids, config.block_size, config.batch_size, *place))

    def _place(self) -> tuple[int, int]:
        """This process's rank and how many there are."""
        assert self.trainer is not None
        return self.trainer.global_rank, self.trainer.world_size

    def _batches_seen(self) -> int:
        assert self.trainer is not None
        return self.trainer.global_step * self.trainer.accumulate_grad_batches

    def _loader(self, blocks: Dataset[Batch], sampler: Sampler | None = None, num_workers: int = 0) -> DataLoader:
        assert self.trainer is not None
        return DataLoader(
            blocks,
            batch_size=None,  # an item is a batch
            sampler=sampler,
            num_workers=num_workers,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
        )

"""The LightningDataModule: a text, and the blocks of it that a step needs."""

import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from chargpt.batches import PART_NAMES, Batch, DataConfig, RandomBlocks, SequentialBlocks, parts_of
from chargpt.corpus import Corpus, Ids, encode_text, find_encoded, ids_in, read_at_random
from chargpt.errors import UserError
from chargpt.sources import SOURCES, find_files
from chargpt.tokenizer import CharTokenizer, Tokenizer


class StepsFrom(Sampler[int]):
    """An endless sampler of batch numbers from `first()` on, which each iteration calls at its beginning."""

    def __init__(self, first: Callable[[], int]):
        self.first = first

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first())


class CharDataModule(LightningDataModule):
    """Random blocks of a text for training, the rest of it in order for validation and, with a third part, for a test.

    Args:
        config: which text, in which blocks.
        expected: `identities` of the run that is resumed, whose texts then come from the cache unless paths are given.

    Attributes, once `setup` has run:
        corpus: the encoded text that trains.
        parts: the text and the ids of each part, by `train`, `val` and `test`; the last two may be of separate texts.
        tokenizer: of the vocabulary of all texts together, as the lecture takes it from the whole text.
        train_ids, val_ids, test_ids: the parts in that vocabulary; the last is None without a test part.
    """

    trainer: Any  # Lightning sets it

    def __init__(self, config: DataConfig, expected: dict[str, str] | None = None):
        super().__init__()
        self.config = config
        self._expected = expected or {}
        self._files: set[str] = set()

    def setup(self, stage: str | None = None) -> None:
        """Load the texts, once. Called before there is a Trainer, since the model's size depends on the vocabulary;
        every process may do so at the same time."""
        if hasattr(self, "corpus"):
            return
        text, config = self._load(""), self.config
        separate = {
            part: self._load(f"{part}_")
            for part, path in {"val": config.val_path, "test": config.test_path}.items()
            if path is not None or f"{part}_sha256" in self._expected
        }
        cut = {"train": text.ids} if "val" in separate else parts_of(text.ids, config.split)
        parts: dict[str, tuple[Corpus, Ids]] = {part: (text, ids) for part, ids in cut.items()}
        parts |= {part: (corpus, corpus.ids) for part, corpus in separate.items()}
        for part, (corpus, ids) in parts.items():
            if len(ids) <= config.block_size:
                found = f"{corpus.name} has {len(ids):,} {text.tokenizer.unit}s of {PART_NAMES[part]} text"
                needed = f"model.block_size={config.block_size} needs {config.block_size + 1:,}"
                raise UserError(f"{found}, but {needed}: use a longer text or a smaller one")
        vocabulary = {char for corpus in (text, *separate.values()) for char in corpus.tokenizer.characters or ""}
        self.corpus = text
        self.parts = parts | {"train": (text, read_at_random(text.ids)[: len(cut["train"])])}
        self.use(CharTokenizer("".join(sorted(vocabulary))) if vocabulary else text.tokenizer)

    def use(self, tokenizer: Tokenizer) -> None:
        """Use this vocabulary for all ids; it must have every character of the texts."""
        found = {part: ids_in(tokenizer, corpus.tokenizer, ids) for part, (corpus, ids) in self.parts.items()}
        self.tokenizer, self.train_ids, self.val_ids = tokenizer, found["train"], found["val"]
        self.test_ids: Ids | None = found.get("test")

    @property
    def identities(self) -> dict[str, str]:
        """`name` and `sha256` of the text, and `val_name` and so on of separate texts."""
        texts = {"" if corpus is self.corpus else f"{part}_": corpus for part, (corpus, _) in self.parts.items()}
        names = {f"{prefix}name": corpus.name for prefix, corpus in texts.items()}
        return names | {f"{prefix}sha256": corpus.sha256 for prefix, corpus in texts.items()}

    def _load(self, prefix: str) -> Corpus:
        """The text of `config.path`, or with the prefix `val_` or `test_` that of `config.val_path` and so on."""
        config = self.config
        path, sha256 = getattr(config, f"{prefix}path"), self._expected.get(f"{prefix}sha256")
        if self._expected and sha256 is None:
            raise UserError(f"the run began without data.{prefix}path; start a new run for it")
        if sha256 is not None and path is None:
            name = self._expected.get(f"{prefix}name", "")
            if corpus := find_encoded(sha256, name, config.tokenizer):
                return corpus
            if prefix or config.source == "file":
                raise UserError(f"the text of the run ({name}) is not in your cache: add data.{prefix}path=my.txt")
        text = find_files(path, f"data.{prefix}path=") if prefix else SOURCES[config.source](path)
        files = {*map(os.path.realpath, text.files)}
        if both := files & self._files:
            raise UserError(f"{min(both)} is in two of data.path, val_path and test_path: the loss would mean nothing")
        self._files |= files
        return encode_text(text, sha256, config.tokenizer, config.encoding)

    def train_dataloader(self) -> DataLoader:
        trainer, vocab_size = self.trainer, self.tokenizer.vocab_size
        blocks = RandomBlocks(self.train_ids, self.config, vocab_size, trainer.global_rank, trainer.world_size)
        # Batches, not optimizer steps: an epoch may end within an accumulated step. Lightning has no documented count.
        progress = trainer.fit_loop.epoch_loop.batch_progress
        return self._loader(blocks, StepsFrom(lambda: progress.total.processed))

    def val_dataloader(self) -> DataLoader:
        config, trainer = self.config, self.trainer
        place = (trainer.global_rank, trainer.world_size)
        return self._loader(SequentialBlocks(self.val_ids, config.block_size, config.batch_size, *place))

    def _loader(self, blocks: Dataset[Batch], sampler: Sampler | None = None) -> DataLoader:
        return DataLoader(
            blocks,
            batch_size=None,  # an item is a batch
            sampler=sampler,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
            generator=torch.Generator(),  # the default one also drives dropout, and each iteration would advance it
        )

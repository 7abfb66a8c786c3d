"""The LightningDataModule: a text, and the blocks of it that a step needs."""

import atexit
import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from ctypes import c_bool

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from chargpt.batches import CALLED, Batch, DataConfig, RandomBlocks, SequentialBlocks, parts_of
from chargpt.corpus import Corpus, Ids, encode_text, find_encoded, ids_in, read_at_random
from chargpt.errors import UserError
from chargpt.sources import find_files, find_text
from chargpt.tokenizer import CharTokenizer, Tokenizer


class StepsFrom(Sampler[int]):
    """first(), first() + 1, ... without end; each iteration calls `first` at its beginning."""

    def __init__(self, first: Callable[[], int]):
        self.first = first

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first())


class OutliveSignals:
    """Has a loader worker ignore signals until the main process ends. `timeout` and SLURM signal all processes, and the
    main one may need another batch before it saves."""

    def __init__(self) -> None:
        self.ending = multiprocessing.RawValue(c_bool, False)  # in memory that the workers share
        atexit.register(setattr, self.ending, "value", True)  # before multiprocessing ends its children by SIGTERM

    def __call__(self, worker: int) -> None:
        for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"):
            if hasattr(signal, name):  # Windows has only one of them
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if self.ending.value else None)


class CharDataModule(LightningDataModule):
    """Random blocks of a text for training, the rest of it in order for validation and, with a third part, for a test.

    Args:
        config: which text, in which blocks.
        expected: `identities` of the run that is resumed, whose texts then come from the cache unless paths are given.

    Attributes, once `setup` has run:
        corpus: the encoded text that trains.
        own: separate texts for validation or test, by `val` and `test`.
        tokenizer: of the vocabulary of all texts together, as the lecture takes it from the whole text.
        train_ids, val_ids, test_ids: the parts; the last is None without a test part.
    """

    def __init__(self, config: DataConfig, expected: dict[str, str] | None = None):
        super().__init__()
        self.config = config
        self._expected = expected or {}

    def setup(self, stage: str | None = None) -> None:
        """Load the texts, once. Called before there is a Trainer, since the model's size depends on the vocabulary;
        every process may do so at the same time."""
        if hasattr(self, "corpus"):
            return
        text, config = self._load(""), self.config
        given = {"val": config.val_path, "test": config.test_path}
        own = {
            part: self._load(f"{part}_")
            for part, path in given.items()
            if path is not None or f"{part}_sha256" in self._expected
        }
        cut: dict[str, np.ndarray] = {"train": text.ids} if "val" in own else parts_of(text.ids, config.split)
        parts, block_size = cut | {part: corpus.ids for part, corpus in own.items()}, config.block_size
        for part, ids in parts.items():
            if len(ids) <= block_size:
                raise UserError(
                    f"{own.get(part, text).name} has {len(ids):,} {text.tokenizer.unit}s of {CALLED[part]} text, but"
                    f" model.block_size={block_size} needs {block_size + 1:,}: use a longer text or a smaller one"
                )
        vocabulary = {char for corpus in (text, *own.values()) for char in corpus.tokenizer.characters or ""}
        self.corpus, self.own = text, own
        self._parts = parts | {"train": read_at_random(text.ids)[: len(parts["train"])]}
        self.use(CharTokenizer("".join(sorted(vocabulary))) if vocabulary else text.tokenizer)

    def use(self, tokenizer: Tokenizer) -> None:
        """Use this vocabulary for all ids; it must have every character of the texts."""
        found = {
            part: ids_in(tokenizer, self.own.get(part, self.corpus).tokenizer, ids) for part, ids in self._parts.items()
        }
        self.tokenizer, self.train_ids, self.val_ids = tokenizer, found["train"], found["val"]
        self.test_ids: Ids | None = found.get("test")

    @property
    def identities(self) -> dict[str, str]:
        """`name` and `sha256` of the text, and `val_name` and so on of separate texts."""
        texts = {"": self.corpus, **{f"{part}_": corpus for part, corpus in self.own.items()}}
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
            corpus = find_encoded(sha256, name, config.tokenizer)
            if corpus is not None:
                return corpus
            if prefix or config.source == "file":
                raise UserError(f"the text of the run ({name}) is no longer in the cache: add data.{prefix}path=my.txt")
        if prefix:
            text = find_files(path, f"data.{prefix}path=")
        else:
            text = find_text(config.source, path, None if self._expected else config.fallback)
        return encode_text(text, sha256, config.tokenizer, verify=config.verify)

    def train_dataloader(self) -> DataLoader:
        trainer, config = self.trainer, self.config
        assert trainer is not None
        sizes = (config.block_size, config.batch_size, config.seed, trainer.global_rank, trainer.world_size)
        # Batches, not optimizer steps: an epoch may end within an accumulated step. Lightning has no documented count.
        progress = trainer.fit_loop.epoch_loop.batch_progress
        steps = StepsFrom(lambda: progress.total.processed)  # type: ignore[attr-defined]
        return self._loader(RandomBlocks(self.train_ids, *sizes), steps, config.num_workers)

    def val_dataloader(self) -> DataLoader:
        return self._in_order(self.val_ids)

    def test_dataloader(self) -> DataLoader:
        assert self.test_ids is not None
        return self._in_order(self.test_ids)

    def _in_order(self, ids: Ids) -> DataLoader:
        assert self.trainer is not None
        place = (self.trainer.global_rank, self.trainer.world_size)
        return self._loader(SequentialBlocks(ids, self.config.block_size, self.config.batch_size, *place))

    def _loader(self, blocks: Dataset[Batch], sampler: Sampler | None = None, num_workers: int = 0) -> DataLoader:
        assert self.trainer is not None
        return DataLoader(
            blocks,
            batch_size=None,  # an item is a batch
            sampler=sampler,
            num_workers=num_workers,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
            worker_init_fn=OutliveSignals() if num_workers else None,
            generator=torch.Generator(),  # the default one also drives dropout, and each iteration would advance it
        )

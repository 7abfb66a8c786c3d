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
    """A loader worker's answer to signals: nothing, until the main process ends and sends SIGTERM to its children.

    `timeout` and SLURM send a signal to all processes. The main one then saves, and may need another batch before.
    """

    def __init__(self) -> None:
        self.ending = multiprocessing.RawValue(c_bool, False)  # in memory that the workers share
        atexit.register(setattr, self.ending, "value", True)  # runs before multiprocessing ends its children

    def __call__(self, worker: int) -> None:
        for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"):
            if hasattr(signal, name):  # Windows has one of them
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if self.ending.value else None)


class CharDataModule(LightningDataModule):
    """Random blocks of a text for training, the rest of it in order for validation and, with a third part, for a test.

    Args:
        config: which text, in which blocks.
        expected: `identities` of the run that is resumed. These texts are taken from the cache unless their path is
            given.

    Attributes:
        config: which text, in which blocks.
        corpus: the encoded text that trains; like all below, there once `setup` has run.
        own: separate texts to validate or test on, by `val` and `test`.
        tokenizer: its vocabulary is that of all texts together, as the lecture takes it from all of a text.
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
        config = self.config
        text, own = self._load(""), {}
        for part in ("val", "test"):
            is_given, is_expected = getattr(config, f"{part}_path") is not None, f"{part}_sha256" in self._expected
            if is_given and self._expected and not is_expected:
                raise UserError(f"the run began without data.{part}_path; start a new run for it")
            if is_given or is_expected:
                own[part] = self._load(f"{part}_")
        cut: dict[str, np.ndarray] = {"train": text.ids} if "val" in own else parts_of(text.ids, config.split)
        parts = cut | {part: corpus.ids for part, corpus in own.items()}
        for part, ids in parts.items():
            if len(ids) <= config.block_size:
                raise UserError(
                    f"{own.get(part, text).name} has {len(ids):,} {text.tokenizer.unit}s of {CALLED[part]} text, but"
                    f" model.block_size={config.block_size} needs {config.block_size + 1:,}: use a longer text or a"
                    " smaller block_size"
                )
        vocabulary = {char for corpus in (text, *own.values()) for char in corpus.tokenizer.characters or ""}
        if len(vocabulary) == 1:
            raise UserError(f"{text.name} has a single distinct character: there is nothing to learn")
        self.corpus, self.own = text, own
        self._parts = parts | {"train": read_at_random(text.ids)[: len(parts["train"])]}
        self.use(CharTokenizer("".join(sorted(vocabulary))) if vocabulary else text.tokenizer)

    def use(self, tokenizer: Tokenizer) -> None:
        """Take the ids of this vocabulary, which must have all characters of the texts, instead of the texts' own."""
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
        if sha256 is not None and path is None:
            name = self._expected.get(f"{prefix}name", "an unnamed text")
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
        blocks = RandomBlocks(self.train_ids, *self._sizes, self.config.seed, *self._place)
        return self._loader(blocks, StepsFrom(self._batches_seen), self.config.num_workers)

    def val_dataloader(self) -> DataLoader:
        return self._loader(SequentialBlocks(self.val_ids, *self._sizes, *self._place))

    def test_dataloader(self) -> DataLoader:
        assert self.test_ids is not None
        return self._loader(SequentialBlocks(self.test_ids, *self._sizes, *self._place))

    @property
    def _sizes(self) -> tuple[int, int]:
        return self.config.block_size, self.config.batch_size

    @property
    def _place(self) -> tuple[int, int]:
        """This process's rank, and the number of processes."""
        assert self.trainer is not None
        return self.trainer.global_rank, self.trainer.world_size

    def _batches_seen(self) -> int:
        """The number of batches that training has used; an epoch may end within an accumulated step."""
        assert self.trainer is not None
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]

    def _loader(self, blocks: Dataset[Batch], sampler: Sampler | None = None, num_workers: int = 0) -> DataLoader:
        assert self.trainer is not None
        return DataLoader(
            blocks,
            batch_size=None,  # an item is a batch
            sampler=sampler,
            num_workers=num_workers,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
            worker_init_fn=OutliveSignals() if num_workers else None,
            generator=torch.Generator(),  # else each iteration would draw from the one that dropout draws from
        )

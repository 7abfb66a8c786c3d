"""The LightningDataModule: a text, and the blocks of it that a step needs."""

import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from ctypes import c_bool
from multiprocessing.util import Finalize

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from chargpt.blocks import CALLED, Batch, DataConfig, RandomBlocks, SequentialBlocks, parts_of
from chargpt.corpus import Corpus, Ids, encode_text, find_encoded, ids_in, read_at_random
from chargpt.errors import UserError
from chargpt.sources import file, find_text
from chargpt.tokenizer import CharTokenizer, Tokenizer


class StepsFrom(Sampler[int]):
    """first(), first() + 1, ... without end; `first` is asked each time that an iteration begins."""

    def __init__(self, first: Callable[[], int]):
        self.first = first

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.first())


class OutliveSignals:
    """What a loader's worker does with signals: nothing, before the main process has come to its end.

    What is sent to the whole process group is for the main process alone, which then saves its state, and may need
    another batch before. At its own end that one sends SIGTERM, too, and waits for the worker.
    """

    def __init__(self) -> None:
        self.ending = multiprocessing.RawValue(c_bool, False)  # seen by the workers
        Finalize(None, self._end, exitpriority=100)  # before the workers are waited for

    def _end(self) -> None:
        self.ending.value = True

    def __call__(self, worker: int) -> None:
        for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"):
            if hasattr(signal, name):  # Windows has one of them
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if self.ending.value else None)


class CharDataModule(LightningDataModule):
    """Random blocks of a text for training, the rest of it in order for validation and, if there is a third part, for a
    test.

    Args:
        config: which text, in which blocks.
        expected: of a run that goes on, the `name` and the `sha256` of the text that it was trained on, and those of
            its other texts (`val_name` and so on). They are taken from the cache, unless their path is given.

    Attributes:
        config: which text, in which blocks.
        corpus: the encoded text that trains, once `setup` has run, as are the next four.
        source: where it came from: `config.source`, or its fallback.
        own: texts of their own that validate or test, by `val` and `test`.
        tokenizer: its vocabulary is that of all texts together, as the lecture takes it from all of a text.
        train_ids, val_ids, test_ids: the parts; the last is None where there is none.
    """

    def __init__(self, config: DataConfig, expected: dict[str, str] | None = None):
        super().__init__()
        self.config = config
        self._expected = expected or {}

    def setup(self, stage: str | None = None) -> None:
        """Load the texts. Every process may do so at the same time, and training does so before there is a Trainer,
        since the model's size depends on the vocabulary; later calls do nothing.

        Raises:
            UserError: a text cannot be used.
        """
        if hasattr(self, "corpus"):
            return
        config = self.config
        self.source = config.source
        text = self._load("train")
        own = {part: self._load(part) for part in ("val", "test") if self._has_own(part)}
        cut = {"train": text.ids} if "val" in own else parts_of(text.ids, config.split)
        parts = {part: (text, ids) for part, ids in cut.items()}
        parts |= {part: (each, each.ids) for part, each in own.items()}
        for part, (corpus, ids) in parts.items():
            if len(ids) < config.block_size + 1:
                is_cut = len(ids) < len(corpus.ids)
                raise UserError(
                    f"{f'the {CALLED[part]} split of ' if is_cut else ''}{corpus.name} has {len(ids):,}"
                    f" {corpus.tokenizer.unit}s, but model.block_size={config.block_size} needs"
                    f" {config.block_size + 1:,}: use a longer text or a smaller block_size"
                )
        vocabularies = {corpus.tokenizer.characters for corpus in (text, *own.values())}
        together = "".join(sorted({char for characters in vocabularies for char in characters or ()}))
        tokenizer = CharTokenizer(together) if len(vocabularies) > 1 else text.tokenizer
        if tokenizer.vocab_size == 1:
            raise UserError(f"{text.name} has a single distinct character: there is nothing to learn")
        read_at_random(cut["train"])
        self._parts, self.corpus, self.own = parts, text, own
        self.use(tokenizer)

    def use(self, tokenizer: Tokenizer) -> None:
        """Give the ids of a vocabulary that has all characters of the texts, instead of the texts' own.

        Raises:
            UserError: it lacks some.
        """
        found = {part: ids_in(tokenizer, corpus.tokenizer, ids) for part, (corpus, ids) in self._parts.items()}
        self.tokenizer, self.train_ids, self.val_ids = tokenizer, found["train"], found["val"]
        self.test_ids: Ids | None = found.get("test")

    @property
    def identities(self) -> dict[str, str]:
        """What the texts are called, and their hashes, by the names that `expected` has."""
        found = {"name": self.corpus.name, "sha256": self.corpus.sha256}
        for part, corpus in self.own.items():
            found |= {f"{part}_name": corpus.name, f"{part}_sha256": corpus.sha256}
        return found

    def _has_own(self, part: str) -> bool:
        """Whether there is a text of its own to validate or to test on.

        Raises:
            UserError: there is one now, and the run that goes on had none.
        """
        given = getattr(self.config, f"{part}_path") is not None
        if self._expected and given and f"{part}_sha256" not in self._expected:
            raise UserError(f"the run began without data.{part}_path; start a new run for it")
        return given or f"{part}_sha256" in self._expected

    def _load(self, part: str) -> Corpus:
        config, prefix = self.config, "" if part == "train" else f"{part}_"
        path, sha256 = getattr(config, f"{prefix}path"), self._expected.get(f"{prefix}sha256")
        if sha256 is not None and path is None:
            name = self._expected[f"{prefix}name"]
            corpus = find_encoded(sha256, name, config.tokenizer, afresh=config.verify)
            if corpus is not None:
                return corpus
            if prefix or config.source == "file":
                raise UserError(
                    f"the text of the run ({name}) is not in the cache any more; say where it is:"
                    f" data.{prefix}path=my.txt"
                )
        if prefix:
            text = file(path, f"data.{prefix}path=")
        else:  # a run that goes on does so with its own text or not at all
            text = find_text(config.source, path, config.fallback if sha256 is None else None)
            self.source = text.source
        return encode_text(text, sha256, config.tokenizer, afresh=config.verify)

    def train_dataloader(self) -> DataLoader:
        config, place = self.config, self._place()
        blocks = RandomBlocks(self.train_ids, config.block_size, config.batch_size, config.seed, *place)
        return self._loader(blocks, StepsFrom(self._batches_seen), config.num_workers)

    def val_dataloader(self) -> DataLoader:
        config, place = self.config, self._place()
        return self._loader(SequentialBlocks(self.val_ids, config.block_size, config.batch_size, *place))

    def test_dataloader(self) -> DataLoader:
        assert self.test_ids is not None
        config, place = self.config, self._place()
        return self._loader(SequentialBlocks(self.test_ids, config.block_size, config.batch_size, *place))

    def _place(self) -> tuple[int, int]:
        """This process's rank and how many there are."""
        assert self.trainer is not None
        return self.trainer.global_rank, self.trainer.world_size

    def _batches_seen(self) -> int:
        """Batches whose step is done, or whose share of one: an epoch may end before a step has all of its own."""
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

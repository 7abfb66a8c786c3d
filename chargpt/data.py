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

from chargpt.blocks import Batch, DataConfig, RandomBlocks, SequentialBlocks, split_at
from chargpt.corpus import Corpus, encode_text, find_encoded, ids_in
from chargpt.errors import UserError, one_line
from chargpt.sources import find_text
from chargpt.tokenizer import CharTokenizer


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
    """Random blocks of a text for training, the rest of it in order for validation.

    Args:
        config: which text, in which blocks.
        sha256: of a run that goes on: the text that it was trained on, which is then taken from the cache, unless a
            path is given, or must be the one that the source has.
        name: what that text is called.

    Attributes:
        config: which text, in which blocks.
        corpus: the encoded text, once `setup` has run, as are the next three.
        source: where it came from: `config.source`, or its fallback.
        train_ids, val_ids: its two splits.
    """

    def __init__(self, config: DataConfig, sha256: str | None = None, name: str = ""):
        super().__init__()
        self.config = config
        self._expected = sha256
        self._expected_name = name

    def setup(self, stage: str | None = None) -> None:
        """Load the text. Every process may do so at the same time, and training does so before there is a Trainer,
        since the model's size depends on the vocabulary; later calls do nothing.

        Raises:
            UserError: the text cannot be used.
        """
        if hasattr(self, "corpus"):
            return
        config = self.config
        corpus = self._load()
        split = split_at(len(corpus.ids), config.val_fraction)
        self.train_ids, self.val_ids = corpus.ids[:split], corpus.ids[split:]
        for name, ids in (("training", self.train_ids), ("validation", self.val_ids)):
            if len(ids) < config.block_size + 1:
                raise UserError(
                    f"the {name} split of {corpus.name} has {len(ids):,} characters, but model.block_size="
                    f"{config.block_size} needs {config.block_size + 1:,}: use a longer text or a smaller block_size"
                )
        if corpus.tokenizer.vocab_size == 1:
            raise UserError(f"{corpus.name} has a single distinct character: there is nothing to learn")
        self.corpus: Corpus = corpus

    def use(self, tokenizer: CharTokenizer) -> None:
        """Give the ids of a vocabulary that has all characters of the text, instead of the text's own.

        Raises:
            UserError: it lacks some.
        """
        ids, split = ids_in(tokenizer, self.corpus), len(self.train_ids)
        self.train_ids, self.val_ids = ids[:split], ids[split:]

    def _load(self) -> Corpus:
        config, sha256 = self.config, self._expected
        self.source = config.source
        if sha256 is not None and config.path is None:
            corpus = find_encoded(sha256, self._expected_name)
            if corpus is not None:
                return corpus
            if config.source == "file":
                raise UserError(
                    f"the text of the run ({one_line(self._expected_name)}) is not in the cache any more; say where it"
                    " is: data.path=my.txt"
                )
        # A run that goes on does so with its own text or not at all.
        text = find_text(config.source, config.path, config.fallback if sha256 is None else None)
        self.source = text.source
        return encode_text(text, sha256)

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

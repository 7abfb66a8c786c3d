"""How well a model predicts a text: every character of it once."""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from chargpt.batches import CALLED, IGNORED, Batch, SequentialBlocks, parts_of
from chargpt.checkpoint import Checkpoint, Scoring
from chargpt.corpus import PIECE, Corpus, Ids, find_encoded, ids_in
from chargpt.errors import NonFiniteError, UserError
from chargpt.model import Model
from chargpt.tokenizer import Tokenizer

MOST_CHARACTERS = 1 << 18  # at once: a file may say any batch size
AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # the others are the weights' own


@dataclass(frozen=True)
class Score:
    """How well a text was predicted.

    Attributes:
        characters: how many were predicted: all but the first.
        loss: the mean cross entropy, in nats per id.
        accuracy: the share of characters that were thought the likeliest.
    """

    characters: int
    loss: float
    accuracy: float

    @property
    def bits(self) -> float:
        """The loss in bits per character."""
        return self.loss / math.log(2)

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf


def bytes_of(tokenizer: Tokenizer, ids: Ids) -> int:
    """How many bytes of UTF-8 those characters take that a score predicts: all but the first."""
    if tokenizer.characters is None:
        return len(ids) - 1
    lengths = np.array([len(character.encode()) for character in tokenizer.characters])
    return sum(int(lengths[ids[at : at + PIECE]].sum()) for at in range(1, len(ids), PIECE))


def part_of_text(
    checkpoint: Checkpoint, part: str, text: Corpus | None = None, *, skip_unknown: bool = False
) -> tuple[Ids, str] | None:
    """The ids of what a checkpoint's model was validated or tested on, and what it is called; None where it is not in
    the cache, or the text at hand is another.

    Args:
        part: `val` or `test`.
        text: if it is at hand, that which the model was trained on or, where this part is one of its own, that one.

    Raises:
        UnknownCharacterError: the vocabulary lacks characters of it and `skip_unknown` is false.
        UserError: there is no such part.
    """
    said, tokenizer, split = checkpoint.text, checkpoint.tokenizer, checkpoint.scoring.split
    is_own = f"{part}_sha256" in said
    if not is_own and part == "test" and len(split) < 3:
        raise UserError("the run had no test part: data.split=[0.9,0.05,0.05] or data.test_path=... makes one")
    prefix = f"{part}_" if is_own else ""
    sha256 = said.get(f"{prefix}sha256", "")
    if text is None:
        text = find_encoded(sha256, said.get(f"{prefix}name", ""), tokenizer.kind)
    if text is None or text.sha256 != sha256:
        return None
    cut = text.ids if is_own else parts_of(text.ids, split)[part]
    what = text.name if is_own else f"the {CALLED[part]} split of {text.name}"
    return ids_in(tokenizer, text.tokenizer, cut, skip_unknown=skip_unknown), what


@torch.inference_mode()
def score(model: Model, ids: Ids, how: Scoring, stride: int | None = None) -> Score:
    """Predict every character of a text but the first, once.

    As in validation, the text is cut into blocks, so that the first characters of each are predicted from few; or, with
    `stride`, each is predicted from at least that many before it (but the first ones of the text, which have fewer),
    by windows that overlap. Sums are in float64.

    Args:
        model: in eval mode, on its device.
        ids: shape (characters,), in the model's vocabulary.
        how: its batch size and precision.
        stride: characters, at most the model's block_size, which is slowest: each takes a window of its own.

    Raises:
        UserError: the text has less than two characters, `stride` is out of range, or memory is too small.
        NonFiniteError: the model's outputs are not finite numbers.
    """
    block_size, device = model.config.block_size, next(model.parameters()).device
    if len(ids) < 2:
        raise UserError("a text of less than two characters cannot be scored: there is nothing to predict")
    if stride is not None and not 1 <= stride <= block_size:
        raise UserError(f"stride must be at least 1 and at most block_size={block_size} characters; got {stride}")
    step = block_size if stride is None else block_size - stride + 1
    rows = min(how.batch_size, math.ceil(len(ids) / step), max(1, MOST_CHARACTERS // block_size))
    batches = _blocks(ids, block_size, rows) if stride is None else _windows(ids, block_size, rows, step)
    autocast = torch.autocast(device.type, AUTOCAST[how.precision]) if how.precision in AUTOCAST else nullcontext()
    loss, hits, characters = 0.0, 0, 0
    with autocast:
        for (inputs, targets), fresh in batches:
            logits = model(inputs.to(device)).flatten(0, 1).float()  # (B * T, vocab_size)
            wanted = targets.flatten().to(device)
            losses = F.cross_entropy(logits, wanted, reduction="none").cpu().double()
            right = (logits.argmax(-1) == wanted).cpu()
            keep = fresh.flatten()
            loss += losses[keep].sum().item()
            hits += int(right[keep].sum())
            characters += int(keep.sum())
            if not math.isfinite(loss):
                raise NonFiniteError("the model's outputs are not finite numbers")
    return Score(characters, loss / characters, hits / characters)


def _blocks(ids: Ids, block_size: int, batch_size: int) -> Iterator[tuple[Batch, Tensor]]:
    """The batches of validation, and which of the targets are not padding."""
    blocks = SequentialBlocks(ids, block_size, batch_size)
    for item in range(len(blocks)):
        inputs, targets = blocks[item]
        yield (inputs, targets), targets != IGNORED


def _windows(ids: Ids, block_size: int, batch_size: int, step: int) -> Iterator[tuple[Batch, Tensor]]:
    """Windows of `block_size` characters that begin `step` after one another, the last one at the text's end, and
    which of the targets, (B, T), no earlier window had."""
    targets = len(ids) - 1
    size = min(block_size, targets)
    starts = np.append(np.arange(0, targets - size, step), targets - size)
    fresh = np.diff(starts, prepend=-size)  # targets of each window that are its own, at its end
    for first in range(0, len(starts), batch_size):
        rows = slice(first, first + batch_size)
        text = torch.from_numpy(ids[starts[rows, None] + np.arange(size + 1)].astype(np.int64))  # (B, T + 1)
        yield (text[:, :-1], text[:, 1:]), torch.from_numpy(np.arange(size) >= size - fresh[rows, None])

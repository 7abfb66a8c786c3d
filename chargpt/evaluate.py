"""Score text with trained models: `python -m chargpt.evaluate --text my.txt`."""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from chargpt.batches import CALLED, IGNORED, Batch, SequentialBlocks, parts_of
from chargpt.checkpoint import Checkpoint, EvalSettings, find_checkpoint, read_checkpoint
from chargpt.command_line import Parser, file_name, open_output, pick_device, table
from chargpt.corpus import PIECE, Corpus, Ids, encode_text, find_encoded, ids_in
from chargpt.errors import NonFiniteError, UserError, escape, tell
from chargpt.model import Model
from chargpt.sources import Text, find_files
from chargpt.tokenizer import Tokenizer, UnknownCharacterError

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # other precisions are the weights' own


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    return build_parser().run(evaluate, argv)


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m chargpt.evaluate", description="Score text: every character of it is predicted once."
    )
    parser.add_argument(
        "--ckpt",
        type=file_name,
        nargs="+",
        metavar="RUN_OR_FILE",
        help="runs' or shared folders, checkpoints, or a sweep's folder: all its runs (default: the newest run)",
    )
    parser.add_argument(
        "--text",
        type=file_name,
        metavar="FILE",
        help="a UTF-8 file, a folder of .txt files or a glob (default: the validation text of the run; also if FILE is"
        " the text that it was trained on)",
    )
    parser.add_argument("--split", choices=("val", "test"), help="the run's own validation or test text (default: val)")
    parser.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="predict each character from at least N before it, by windows that overlap (default: by blocks, whose"
        " first characters are predicted from few)",
    )
    parser.add_argument(
        "--unknown",
        choices=("error", "skip"),
        default="error",
        help="what to do with characters of the text that the model does not know",
    )
    parser.add_argument("--json", action="store_true", help="print a list of objects, one for each checkpoint")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: the fastest there is)")
    return parser


def evaluate(arguments: argparse.Namespace) -> None:
    """Score each checkpoint and print the scores."""
    paths = [path for each in arguments.ckpt or [None] for path in checkpoints_of(each)]
    text = None if arguments.text is None else find_files(arguments.text, "--text ")
    rows, failed = [], 0
    for path in paths:
        if len(paths) > 1:
            tell(f"Scoring {path}")
        try:
            rows.append(score_checkpoint(path, arguments, text))
        except UserError as error:
            if len(paths) == 1:
                raise
            failed += 1  # the others have their scores
            tell(f"error: {'' if str(path) in str(error) else f'{path}: '}{error}")
    with open_output(None) as out:
        output = json.dumps(rows, indent=2) if arguments.json else as_text(rows, arguments.stride)
        out.write((escape(output) if out.isatty() else output) + "\n")
    if failed:
        raise UserError(f"{failed} of {len(paths)} checkpoints could not be scored")


def checkpoints_of(run_or_file: str | None) -> Iterator[Path]:
    """The checkpoint of a run, or those of all runs in a sweep's folder."""
    folder = Path(run_or_file or "")
    runs = sorted(folder.glob("*/checkpoints")) if run_or_file and not (folder / "checkpoints").exists() else []
    if runs:
        yield from (find_checkpoint(run.parent) for run in runs if any(run.glob("*.ckpt")))
    else:
        yield find_checkpoint(run_or_file)


def score_checkpoint(path: Path, arguments: argparse.Namespace, text: Text | None = None) -> dict[str, Any]:
    """Score a checkpoint on a text, by default on the one that it was validated on; returns the object for --json."""
    checkpoint = read_checkpoint(path)
    ids, name = ids_to_score(path, checkpoint, arguments, text)
    device, tokenizer = pick_device(arguments.device), checkpoint.tokenizer
    found = score(checkpoint.model.to(device).eval(), ids, checkpoint.scoring, arguments.stride)
    bits = found.loss / math.log(2)
    scores = {
        "loss": found.loss,
        f"bits_per_{tokenizer.unit}": bits,
        "bits_per_byte": bits * (len(ids) - 1) / bytes_of(tokenizer, ids),  # compares characters with bytes
        "perplexity": math.exp(found.loss) if found.loss < 700 else None,
        "accuracy": found.accuracy,
    }
    return {
        "checkpoint": os.fspath(path),
        "text": name,
        "precision": f"{checkpoint.scoring.precision} on {device}",
        f"{tokenizer.unit}s": len(ids) - 1,
        **({} if arguments.stride is None else {"stride": arguments.stride}),
        **{key if arguments.stride is None else f"sliding_{key}": value for key, value in scores.items()},
    }


def ids_to_score(
    path: Path, checkpoint: Checkpoint, arguments: argparse.Namespace, text: Text | None
) -> tuple[Ids, str]:
    """The ids of a text in the model's vocabulary, and its name."""
    facts, tokenizer, part = checkpoint.text, checkpoint.tokenizer, arguments.split or "val"
    skip = arguments.unknown == "skip"
    corpus = None if text is None else encode_text(text, kind=tokenizer.kind)
    try:
        is_own = corpus is None or corpus.sha256 in facts.values() or arguments.split is not None
        if is_own and (found := part_of_text(checkpoint, part, corpus, skip_unknown=skip)):
            return found
        if corpus is not None and arguments.split is None:
            ids = ids_in(tokenizer, corpus.tokenizer, corpus.ids, skip_unknown=skip)
            if dropped := len(corpus.ids) - len(ids):
                tell(f"Unknown characters left out of {corpus.name}: {dropped:,}")
            return ids, corpus.name
    except UnknownCharacterError as error:
        raise UserError(f"{corpus.name if corpus else 'its text'} has {error}; --unknown skip drops them") from None
    name = facts.get(f"{part}_name") or facts.get("name") or "a text that it does not name"
    wrong = f"not {corpus.name}" if corpus else "not in your cache; say where: --text FILE"
    raise UserError(f"{path} was {'validated' if part == 'val' else 'tested'} on {name}, which is {wrong}")


def part_of_text(
    checkpoint: Checkpoint, part: str, corpus: Corpus | None = None, *, skip_unknown: bool = False
) -> tuple[Ids, str] | None:
    """The ids of a run's `val` or `test` text, and its name; None if `corpus`, or by default the cache, lacks it.

    Raises:
        UnknownCharacterError: the model's vocabulary lacks some of its characters and `skip_unknown` is false.
    """
    facts, tokenizer, split = checkpoint.text, checkpoint.tokenizer, checkpoint.scoring.split
    is_separate = f"{part}_sha256" in facts
    if not is_separate and part == "test" and len(split) < 3:
        raise UserError("the run had no test part: data.split=[0.9,0.05,0.05] or data.test_path=... makes one")
    prefix = f"{part}_" if is_separate else ""
    sha256 = facts.get(f"{prefix}sha256", "")
    corpus = corpus or find_encoded(sha256, facts.get(f"{prefix}name", ""), tokenizer.kind)
    if corpus is None or corpus.sha256 != sha256:
        return None
    ids = corpus.ids if is_separate else parts_of(corpus.ids, split)[part]
    name = corpus.name if is_separate else f"the {CALLED[part]} split of {corpus.name}"
    return ids_in(tokenizer, corpus.tokenizer, ids, skip_unknown=skip_unknown), name


def bytes_of(tokenizer: Tokenizer, ids: Ids) -> int:
    """The bytes of UTF-8 in all characters but the first, which is not predicted."""
    if tokenizer.characters is None:
        return len(ids) - 1
    lengths = np.array([len(character.encode()) for character in tokenizer.characters])
    return sum(int(lengths[ids[start : start + PIECE]].sum()) for start in range(1, len(ids), PIECE))


@dataclass(frozen=True)
class Score:
    """How well a model predicted a text."""

    loss: float  # mean cross entropy in nats per id
    accuracy: float  # the share of ids that the model ranked first


@torch.inference_mode()
def score(model: Model, ids: Ids, settings: EvalSettings, stride: int | None = None) -> Score:
    """Predict every id of a text but the first, once.

    By default in blocks, as in validation: the first ids of each are predicted from few. With `stride`, from at least
    that many ids before it, or all that there are; `stride=block_size` is slowest, with a window for each id.

    Args:
        model: in eval mode, on its device.
        ids: (ids,) in the model's vocabulary.
    """
    block_size, device = model.config.block_size, next(model.parameters()).device
    if len(ids) < 2:
        raise UserError("a text of less than two characters cannot be scored: there is nothing to predict")
    if stride is not None and not 1 <= stride <= block_size:
        raise UserError(f"stride must be at least 1 and at most block_size={block_size} characters; got {stride}")
    T = min(block_size, len(ids) - 1)
    step = T if stride is None else block_size - stride + 1
    rows = min(settings.batch_size, math.ceil(len(ids) / step))
    batches = _blocks(ids, T, rows) if stride is None else _windows(ids, T, rows, step)
    autocast = AUTOCAST.get(settings.precision)
    loss, hits = 0.0, 0  # sums in float64
    with torch.autocast(device.type, autocast) if autocast else nullcontext():
        for inputs, targets in batches:
            logits = model(inputs.to(device)).flatten(0, 1).float()  # (B * T, vocab_size)
            targets = targets.flatten().to(device)
            losses = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
            loss += losses.cpu().double().sum().item()
            hits += int((logits.argmax(-1) == targets).sum())
            if not math.isfinite(loss):
                raise NonFiniteError("the model's outputs are not finite numbers")
    return Score(loss / (len(ids) - 1), hits / (len(ids) - 1))


def _blocks(ids: Ids, block_size: int, batch_size: int) -> Iterator[Batch]:
    blocks = SequentialBlocks(ids, block_size, batch_size)
    return (blocks[n] for n in range(len(blocks)))


def _windows(ids: Ids, T: int, batch_size: int, step: int) -> Iterator[Batch]:
    """Windows of T ids, each `step` after the one before, the last one at the end of the text. Targets that an earlier
    window had are ignored."""
    count = len(ids) - 1
    starts = np.append(np.arange(0, count - T, step), count - T)
    fresh = np.diff(starts, prepend=-T)  # targets of each window that no earlier one had, at its end
    for first in range(0, len(starts), batch_size):
        rows = slice(first, first + batch_size)
        blocks = ids[starts[rows, None] + np.arange(T + 1)].astype(np.int64)  # (B, T + 1)
        targets = np.where(np.arange(T) >= T - fresh[rows, None], blocks[:, 1:], IGNORED)
        yield torch.from_numpy(blocks[:, :-1]), torch.from_numpy(targets)


def as_text(rows: list[dict[str, Any]], stride: int | None) -> str:
    """One score in full, or a table of several."""
    units = ["character" if "characters" in row else "byte" for row in rows]
    context = f"{stride} {' or '.join(f'{unit}s' for unit in sorted(set(units) or {'character'}))} or more"
    name, prefix = ("loss", "") if stride is None else (f"sliding loss (from {context})", "sliding_")
    cells = []
    for row, unit in zip(rows, units, strict=True):
        losses = [row[prefix + key] for key in ("loss", f"bits_per_{unit}", "bits_per_byte", "perplexity")]
        numbers = (f"{math.inf if loss is None else loss:.4f}" for loss in losses)
        cells.append([*numbers, f"{row[prefix + 'accuracy']:.2%}", f"{row[f'{unit}s']:,} {unit}s"])
    if len(rows) != 1:
        head = (name, "bits", "bits/byte", "perplexity", "accuracy", "predicted", "text", "checkpoint")
        return table(head, [(*each, row["text"], row["checkpoint"]) for each, row in zip(cells, rows, strict=True)])
    [row], [unit], [(loss, bits, per_byte, perplexity, accuracy, count)] = rows, units, cells
    bits = f"{bits} bits per {unit}" + (f", {per_byte} bits per byte" if unit != "byte" else "")
    return (
        f"{row['checkpoint']} in {row['precision']}, on {row['text']}\n"
        f"{count} predicted\n"
        f"{name}: {loss} nats per {unit}, {bits}\n"
        f"perplexity: {perplexity}\n"
        f"accuracy: {accuracy}"
    )


if __name__ == "__main__":
    sys.exit(main())

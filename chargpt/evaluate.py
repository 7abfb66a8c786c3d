"""Score text with trained models: `python -m chargpt.evaluate --text my.txt`."""

import argparse
import json
import math
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from chargpt.batches import IGNORED, PART_NAMES, SequentialBlocks, parts_of
from chargpt.checkpoint import Checkpoint, EvalSettings, find_checkpoint, read_checkpoint
from chargpt.command_line import CKPT, DEVICE, Parser, file_name, open_output, pick_device, table
from chargpt.corpus import PIECE, Corpus, Ids, encode_text, find_encoded, ids_in
from chargpt.errors import NonFiniteError, UserError, escape, tell
from chargpt.model import Model
from chargpt.sources import Text, find_files
from chargpt.tokenizer import Tokenizer, UnknownCharacterError

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}  # other precisions are the weights' own


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = Parser(prog="python -m chargpt.evaluate", description="Score text: each character is predicted once.")
    several = "runs, checkpoints, shared folders, or a sweep's folder: all its runs (default: the newest run)"
    parser.add_argument("--ckpt", nargs="+", **CKPT | {"help": several})
    text = "a file, a folder of .txt files or a glob (default: the run's validation text)"
    parser.add_argument("--text", type=file_name, metavar="FILE", help=text)
    parser.add_argument("--encoding", default="utf-8", metavar="NAME", help="of that text (utf-8)")
    parser.add_argument("--split", choices=("val", "test"), help="the run's own validation or test text (val)")
    parser.add_argument("--min-context", type=int, default=1, metavar="N", help="characters before each (1: in blocks)")
    parser.add_argument("--unknown", choices=("error", "skip"), default="error", help="unknown characters of the text")
    parser.add_argument("--json", action="store_true", help="print a list of objects, one for each checkpoint")
    parser.add_argument("--device", **DEVICE)
    return parser.run(evaluate, argv)


def evaluate(arguments: argparse.Namespace) -> None:
    """Score each checkpoint and print the scores."""
    paths = [path for each in arguments.ckpt or [None] for path in checkpoints_of(each)]
    text = None if arguments.text is None else find_files(arguments.text, "--text ")
    rows = []
    for path in paths:
        if len(paths) > 1:
            tell(f"Scoring {path}")
        try:
            rows.append(score_checkpoint(path, arguments, text))
        except UserError as error:
            if len(paths) == 1:
                raise
            tell(f"error: {error}")  # the others have their scores
    with open_output(None) as out:
        output = json.dumps(rows, indent=2) if arguments.json else as_table(rows)
        out.write((escape(output) if out.isatty() else output) + "\n")
    if failed := len(paths) - len(rows):
        raise UserError(f"{failed} of {len(paths)} checkpoints could not be scored")


def checkpoints_of(run_or_file: str | None) -> list[Path]:
    """The checkpoint of a run, or those of all runs in a sweep's folder."""
    folder = Path(run_or_file or "")
    runs = [each for each in sorted(folder.glob("*/checkpoints")) if any(each.glob("*.ckpt"))]
    if run_or_file and runs and not (folder / "checkpoints").exists():
        return [find_checkpoint(each) for each in runs]
    return [find_checkpoint(run_or_file)]


def score_checkpoint(path: Path, arguments: argparse.Namespace, text: Text | None = None) -> dict[str, Any]:
    """Score a checkpoint on a text, by default on the one that it was validated on; returns the object for --json."""
    checkpoint, min_context = read_checkpoint(path), arguments.min_context
    corpus = encode_text(text, kind=checkpoint.tokenizer.kind, encoding=arguments.encoding) if text else None
    ids, name = ids_to_score(checkpoint, corpus, arguments.split, skip_unknown=arguments.unknown == "skip")
    device, tokenizer = pick_device(arguments.device), checkpoint.tokenizer
    loss, accuracy = score(checkpoint.model.to(device).eval(), ids, checkpoint.scoring, min_context)
    bits = loss / math.log(2)
    return {
        "checkpoint": os.fspath(path),
        "text": name,
        "precision": f"{checkpoint.scoring.precision} on {device}",
        f"{tokenizer.unit}s": len(ids) - 1,
        "min_context": min_context,
        "loss": loss,
        f"bits_per_{tokenizer.unit}": bits,
        "bits_per_byte": bits * (len(ids) - 1) / bytes_of(tokenizer, ids),  # compares characters with bytes
        "perplexity": math.exp(min(loss, 700)),
        "accuracy": accuracy,
    }


def ids_to_score(
    checkpoint: Checkpoint, text: Corpus | None, split: str | None, *, skip_unknown: bool = False
) -> tuple[Ids, str]:
    """The ids to score, and the text's name. Without a text, or if the run split it, these are the run's validation or
    test part."""
    facts, tokenizer, shares, part = checkpoint.text, checkpoint.tokenizer, checkpoint.scoring.split, split or "val"
    is_separate = f"{part}_sha256" in facts
    if not is_separate and part == "test" and len(shares) < 3:
        raise UserError("the run had no test part: train with data.split=[0.9,0.05,0.05] or data.test_path=...")
    sha256, own_name = (facts.get(f"{part}_{key}" if is_separate else key, "") for key in ("sha256", "name"))
    corpus = text or find_encoded(sha256, own_name, tokenizer.kind)
    if corpus is None or (split and corpus.sha256 != sha256):
        wrong = f"which is not {corpus.name}" if corpus else "which is not in your cache: name it by --text FILE"
        raise UserError(f"the {PART_NAMES[part]} text is from {own_name or 'an unknown file'}, {wrong}")
    name, ids = corpus.name, np.asarray(corpus.ids)
    if corpus.sha256 == sha256 and not is_separate:
        ids, name = parts_of(ids, shares)[part], f"the {PART_NAMES[part]} split of {name}"
    try:
        found = ids_in(tokenizer, corpus.tokenizer, ids, skip_unknown=skip_unknown)
    except UnknownCharacterError as error:
        raise UserError(f"{name} has {error}; --unknown skip drops them") from None
    dropped = len(ids) - len(found)
    return found, name + f" without {dropped:,} unknown characters" * (dropped > 0)


def bytes_of(tokenizer: Tokenizer, ids: Ids) -> int:
    """The bytes of UTF-8 in all characters but the first, which is not predicted."""
    if tokenizer.characters is None:
        return len(ids) - 1
    lengths = np.array([len(character.encode()) for character in tokenizer.characters])
    return sum(int(lengths[ids[start : start + PIECE]].sum()) for start in range(1, len(ids), PIECE))


@torch.inference_mode()
def score(model: Model, ids: Ids, settings: EvalSettings, min_context: int = 1) -> tuple[float, float]:
    """Predict every id of a text but the first, once.

    Each is predicted from at least `min_context` ids before it, or all that there are. With 1, the text is cut into
    blocks, as in validation; with `block_size`, there is a window for each id.

    Args:
        model: in eval mode, on its device.
        ids: (ids,) in the model's vocabulary.

    Returns:
        The mean cross entropy in nats per id, and the share of ids that the model ranked first.
    """
    block_size, device = model.config.block_size, next(model.parameters()).device
    if len(ids) < 2:
        raise UserError("a text of less than two characters cannot be scored: there is nothing to predict")
    if not 1 <= min_context <= block_size:
        raise UserError(f"min_context must be at least 1 and at most block_size={block_size}; got {min_context}")
    autocast = AUTOCAST.get(settings.precision)
    loss, hits = 0.0, 0  # sums in float64
    with torch.autocast(device.type, autocast) if autocast else nullcontext():
        blocks = SequentialBlocks(ids, block_size, settings.batch_size, stride=block_size - min_context + 1)
        for inputs, targets in map(blocks.__getitem__, range(len(blocks))):
            logits = model(inputs.to(device)).flatten(0, 1).float()  # (B * T, vocab_size)
            targets = targets.flatten().to(device)
            losses = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
            loss += losses.cpu().double().sum().item()
            hits += int((logits.argmax(-1) == targets).sum())
            if not math.isfinite(loss):
                raise NonFiniteError("the model's outputs are not finite numbers")
    return loss / (len(ids) - 1), hits / (len(ids) - 1)


def as_table(rows: list[dict[str, Any]]) -> str:
    """A line for each checkpoint."""
    head = ("loss", "bits", "bits/byte", "perplexity", "accuracy", "predicted", "context", "text", "checkpoint")
    lines = []
    for row in rows:
        unit = "character" if "characters" in row else "byte"
        losses = [row[key] for key in ("loss", f"bits_per_{unit}", "bits_per_byte", "perplexity")]
        counts = (f"{row['accuracy']:.2%}", f"{row[f'{unit}s']:,} {unit}s", str(row["min_context"]))
        lines.append((*(f"{loss:.4f}" for loss in losses), *counts, row["text"], row["checkpoint"]))
    return table(head, lines)


if __name__ == "__main__":
    sys.exit(main())

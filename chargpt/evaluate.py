"""Score text with trained models: `python -m chargpt.evaluate --text my.txt`."""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chargpt import commands
from chargpt.checkpoint import find_checkpoint
from chargpt.commands import Parser, file_name, open_output, pick_device
from chargpt.errors import UserError, one_line, printable, tell
from chargpt.tables import table
from chargpt.tokenizer import CharTokenizer, UnknownCharacterError

if TYPE_CHECKING:
    import numpy as np

    from chargpt.corpus import Corpus
    from chargpt.scoring import Score


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        Its exit status, as `chargpt.commands.run` has it.
    """
    return commands.run(build_parser(), evaluate, argv, "a smaller model needs less")


def build_parser() -> argparse.ArgumentParser:
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
        help="a UTF-8 file, a folder of .txt files or a glob (default, also where it is the text that the run was"
        " trained on: that text's validation split)",
    )
    parser.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="predict each character from at least N before it, by windows that overlap (default: by blocks, of which"
        " the first characters are predicted from few)",
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


@dataclass(frozen=True)
class Row:
    """What was scored, on what, and how it went."""

    checkpoint: Path
    text: str
    precision: str
    score: "Score"


def evaluate(arguments: argparse.Namespace) -> None:
    """Score what the arguments name, and write the scores.

    Raises:
        UserError: an argument, a checkpoint or the text cannot be used.
    """
    paths = [path for each in arguments.ckpt or [None] for path in checkpoints_of(each)]
    corpus = read_text(arguments.text) if arguments.text is not None else None
    rows, failed = [], 0
    for path in paths:
        if len(paths) > 1:
            tell(f"Scoring {path}")
        try:
            rows.append(score_checkpoint(path, corpus, arguments))
        except UserError as error:
            if len(paths) == 1:
                raise
            failed += 1  # the others have their scores
            tell(f"error: {error}")
    with open_output(None) as out:
        text = as_json(rows, arguments.stride) if arguments.json else as_text(rows, arguments.stride)
        out.write((printable(text) if out.isatty() else text) + "\n")
    if failed:
        raise UserError(f"{failed} of {len(paths)} checkpoints could not be scored")


def checkpoints_of(run_or_file: str | None) -> Iterator[Path]:
    """The checkpoint that a name stands for, or those of all runs in a sweep's folder."""
    folder = Path(run_or_file or "")
    runs = sorted(folder.glob("*/checkpoints")) if run_or_file and not (folder / "checkpoints").exists() else []
    if runs:
        yield from (find_checkpoint(run.parent) for run in runs if any(run.glob("*.ckpt")))
    else:
        yield find_checkpoint(run_or_file)


def read_text(path: str) -> "Corpus":
    """The text of a file, a folder or a glob, encoded."""
    from chargpt.corpus import encode_text
    from chargpt.sources import find_text

    return encode_text(find_text("file", path))


def score_checkpoint(path: Path, corpus: "Corpus | None", arguments: argparse.Namespace) -> Row:
    """Score one checkpoint, on a text or on the validation split of the text that it was trained on.

    Raises:
        UserError: the checkpoint or the text cannot be used.
    """
    from chargpt.blocks import split_at
    from chargpt.checkpoint import read_checkpoint
    from chargpt.scoring import find_text_of, score

    checkpoint = read_checkpoint(path)
    trained_on, how = checkpoint.text, checkpoint.scoring
    if corpus is None:
        corpus = find_text_of(checkpoint)
        if corpus is None:
            name = one_line(trained_on["name"]) if trained_on else "a text that it does not name"
            raise UserError(f"{path} was trained on {name}, which is not in your cache; say where: --text FILE")
    ids, what = translated(corpus, checkpoint.tokenizer, arguments.unknown == "skip"), corpus.name
    if trained_on and trained_on["sha256"] == corpus.sha256:
        ids, what = ids[split_at(len(ids), how.val_fraction) :], f"the validation split of {corpus.name}"
    device = pick_device(arguments.device)
    result = score(checkpoint.model.to(device).eval(), ids, how, arguments.stride)
    return Row(path, what, f"{how.precision} on {device}", result)


def translated(corpus: "Corpus", tokenizer: CharTokenizer, skip_unknown: bool) -> "np.ndarray":
    """The ids of a text in another vocabulary.

    Raises:
        UserError: it lacks characters that are not to be skipped.
    """
    from chargpt.corpus import ids_in

    try:
        return ids_in(tokenizer, corpus, skip_unknown=skip_unknown)
    except UnknownCharacterError as error:
        raise UserError(f"{corpus.name} has {error}; --unknown skip drops them") from None


def as_json(rows: list[Row], context: int | None) -> str:
    """A list of objects."""
    prefix = "" if context is None else "sliding_"
    return json.dumps(
        [
            {
                "checkpoint": os.fspath(row.checkpoint),
                "text": row.text,
                "precision": row.precision,
                "characters": row.score.characters,
                **({} if context is None else {"stride": context}),
                f"{prefix}loss": row.score.loss,
                f"{prefix}bits_per_character": row.score.bits,
                f"{prefix}perplexity": row.score.perplexity if row.score.perplexity < math.inf else None,
                f"{prefix}accuracy": row.score.accuracy,
            }
            for row in rows
        ],
        indent=2,
    )


def as_text(rows: list[Row], context: int | None) -> str:
    """A table of several, or one in full."""
    name = "loss" if context is None else f"sliding loss (from {context} characters or more)"
    if len(rows) != 1:
        head = (name, "bits", "perplexity", "accuracy", "characters", "text", "checkpoint")
        return table(
            head,
            [
                (*_numbers(row.score), f"{row.score.characters:,}", one_line(row.text), one_line(row.checkpoint))
                for row in rows
            ],
        )
    [row] = rows
    loss, bits, perplexity, accuracy = _numbers(row.score)
    return (
        f"{one_line(row.checkpoint)} in {row.precision}, on {row.text}\n"
        f"{row.score.characters:,} characters predicted\n"
        f"{name}: {loss} nats per character, {bits} bits per character\n"
        f"perplexity: {perplexity}\n"
        f"accuracy: {accuracy}"
    )


def _numbers(score: "Score") -> tuple[str, str, str, str]:
    return f"{score.loss:.4f}", f"{score.bits:.4f}", f"{score.perplexity:.4f}", f"{score.accuracy:.2%}"


if __name__ == "__main__":
    sys.exit(main())

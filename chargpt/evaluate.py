"""Score text with trained models: `python -m chargpt.evaluate --text my.txt`."""

import argparse
import functools
import json
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chargpt.checkpoint import find_checkpoint
from chargpt.command_line import Parser, file_name, open_output, pick_device, table
from chargpt.errors import UserError, escape, tell
from chargpt.tokenizer import UnknownCharacterError

if TYPE_CHECKING:
    from chargpt.checkpoint import Checkpoint
    from chargpt.corpus import Corpus, Ids
    from chargpt.scoring import Score


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        Its exit status.
    """
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
        help="a UTF-8 file, a folder of .txt files or a glob (default, also where it is the text that the run was"
        " trained on: what the run was validated on)",
    )
    parser.add_argument(
        "--split",
        choices=("val", "test"),
        help="of what the run was trained with: what validated it, or what it was tested on (default: val)",
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
    """What was scored, on what, and how it went.

    Attributes:
        unit: what is predicted one by one: characters, or bytes.
        bytes: of UTF-8 that the predicted characters take.
    """

    checkpoint: Path
    text: str
    precision: str
    score: "Score"
    unit: str
    bytes: int

    @property
    def bits_per_byte(self) -> float:
        """By which models of characters and of bytes compare."""
        return self.score.bits * self.score.characters / self.bytes


def evaluate(arguments: argparse.Namespace) -> None:
    """Score what the arguments name, and write the scores.

    Raises:
        UserError: an argument, a checkpoint or the text cannot be used.
    """
    paths = [path for each in arguments.ckpt or [None] for path in checkpoints_of(each)]
    rows, failed = [], 0
    for path in paths:
        if len(paths) > 1:
            tell(f"Scoring {path}")
        try:
            rows.append(score_checkpoint(path, arguments))
        except UserError as error:
            if len(paths) == 1 or isinstance(error, UnusableTextError):
                raise
            failed += 1  # the others have their scores
            tell(f"error: {'' if str(path) in str(error) else f'{path}: '}{error}")
    with open_output(None) as out:
        text = as_json(rows, arguments.stride) if arguments.json else as_text(rows, arguments.stride)
        out.write((escape(text) if out.isatty() else text) + "\n")
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


class UnusableTextError(UserError):
    """The text cannot be scored by any checkpoint."""


@functools.cache
def read_text(path: str, kind: str) -> "Corpus":
    """The text of a file, a folder or a glob, encoded.

    Raises:
        UnusableTextError: it cannot be.
    """
    from chargpt.corpus import encode_text
    from chargpt.sources import find_files

    try:
        return encode_text(find_files(path, "--text "), kind=kind)
    except UserError as error:
        raise UnusableTextError(str(error)) from error


def score_checkpoint(path: Path, arguments: argparse.Namespace) -> Row:
    """Score one checkpoint, on a text or on what it was validated or tested on.

    Raises:
        UserError: the checkpoint or the text cannot be used.
    """
    from chargpt.checkpoint import read_checkpoint
    from chargpt.scoring import bytes_of, score

    checkpoint = read_checkpoint(path)
    ids, what = text_to_score(path, checkpoint, arguments)
    device, how, tokenizer = pick_device(arguments.device), checkpoint.scoring, checkpoint.tokenizer
    result = score(checkpoint.model.to(device).eval(), ids, how, arguments.stride)
    return Row(path, what, f"{how.precision} on {device}", result, tokenizer.unit, bytes_of(tokenizer, ids))


def text_to_score(path: Path, checkpoint: "Checkpoint", arguments: argparse.Namespace) -> "tuple[Ids, str]":
    """The ids of a text in a model's vocabulary, and what it is called.

    Raises:
        UserError: it cannot be used, or is not there.
    """
    from chargpt.corpus import ids_in
    from chargpt.scoring import part_of_text

    trained_on, part, skip = checkpoint.text, arguments.split or "val", arguments.unknown == "skip"
    text = None if arguments.text is None else read_text(arguments.text, checkpoint.tokenizer.kind)
    try:
        if text is None or text.sha256 in trained_on.values() or arguments.split is not None:
            found = part_of_text(checkpoint, part, text, skip_unknown=skip)
            if found is not None:
                return found
        if text is not None and arguments.split is None:
            ids = ids_in(checkpoint.tokenizer, text.tokenizer, text.ids, skip_unknown=skip)
            if dropped := len(text.ids) - len(ids):
                tell(f"Unknown characters left out of {text.name}: {dropped:,}")
            return ids, text.name
    except UnknownCharacterError as error:
        raise UserError(f"{text.name if text else 'its text'} has {error}; --unknown skip drops them") from None
    name = trained_on.get(f"{part}_name") or trained_on.get("name")
    of = f"{path} was {'validated' if part == 'val' else 'tested'} on {name or 'a text that it does not name'}"
    if text is not None:
        raise UserError(f"{of}, which is not {text.name}")
    raise UserError(f"{of}, which is not in your cache; say where: --text FILE")


def as_json(rows: list[Row], context: int | None) -> str:
    """A list of objects."""
    prefix = "" if context is None else "sliding_"
    return json.dumps(
        [
            {
                "checkpoint": os.fspath(row.checkpoint),
                "text": row.text,
                "precision": row.precision,
                f"{row.unit}s": row.score.characters,
                **({} if context is None else {"stride": context}),
                f"{prefix}loss": row.score.loss,
                f"{prefix}bits_per_{row.unit}": row.score.bits,
                f"{prefix}bits_per_byte": row.bits_per_byte,
                f"{prefix}perplexity": row.score.perplexity if row.score.perplexity < math.inf else None,
                f"{prefix}accuracy": row.score.accuracy,
            }
            for row in rows
        ],
        indent=2,
    )


def as_text(rows: list[Row], context: int | None) -> str:
    """A table of several, or one in full."""
    units = {row.unit for row in rows} or {"character"}
    of = f"{context} {' or '.join(f'{unit}s' for unit in sorted(units))} or more"
    name = "loss" if context is None else f"sliding loss (from {of})"
    if len(rows) != 1:
        head = (name, "bits", "bits/byte", "perplexity", "accuracy", "predicted", "text", "checkpoint")
        return table(
            head,
            [(*_numbers(row), f"{row.score.characters:,} {row.unit}s", row.text, str(row.checkpoint)) for row in rows],
        )
    [row] = rows
    loss, bits, per_byte, perplexity, accuracy = _numbers(row)
    bits = f"{bits} bits per {row.unit}" + (f", {per_byte} bits per byte" if row.unit != "byte" else "")
    return (
        f"{row.checkpoint} in {row.precision}, on {row.text}\n"
        f"{row.score.characters:,} {row.unit}s predicted\n"
        f"{name}: {loss} nats per {row.unit}, {bits}\n"
        f"perplexity: {perplexity}\n"
        f"accuracy: {accuracy}"
    )


def _numbers(row: Row) -> tuple[str, ...]:
    score = row.score
    losses = (score.loss, score.bits, row.bits_per_byte, score.perplexity)
    return *(f"{each:.4f}" for each in losses), f"{score.accuracy:.2%}"


if __name__ == "__main__":
    sys.exit(main())

"""Write text with a trained model: `python sample.py --prompt "ROMEO:"`."""

import argparse
import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from chargpt.checkpoint import find_checkpoint
from chargpt.errors import UserError
from chargpt.tokenizer import UnknownCharacterError

if TYPE_CHECKING:
    import torch


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns its exit status: 0, 2 for input that cannot be used, 130 for Ctrl-C."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8")  # text is UTF-8 here whatever the terminal's locale says
    try:
        sample(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, `head` say, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Write text with a trained model.")
    parser.add_argument("--ckpt", metavar="RUN_OR_FILE", help="a run's folder or a checkpoint (default: newest run)")
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument(
        "--prompt", type=utf8, default="", metavar="TEXT", help="how the text begins (default: a new line)"
    )
    prompt.add_argument("--prompt-file", metavar="FILE", help="a UTF-8 file with the prompt; - is standard input")
    parser.add_argument(
        "--unknown",
        choices=("error", "skip"),
        default="error",
        help="what to do with prompt characters that the model does not know",
    )
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="characters to write (500)")
    parser.add_argument("--temperature", type=float, metavar="T", help="0: always the likeliest (1)")
    parser.add_argument("--top-k", type=int, metavar="K", help="among the K likeliest characters only")
    parser.add_argument("--top-p", type=float, metavar="P", help="among the likeliest that add up to P only")
    parser.add_argument("--num-samples", type=int, metavar="N", help="how many texts (1)")
    parser.add_argument("--window", metavar="WAY", help="past the window: exact, the lecture's way, or stride, faster")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed writes the same text")
    parser.add_argument("--stop", type=utf8, metavar="TEXT", help="end before the first TEXT that is written")
    parser.add_argument("--out", metavar="FILE", help="write there, not to the terminal")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: the fastest there is)")
    return parser


def utf8(argument: str) -> str:
    """The argument as UTF-8, whatever encoding the locale made Python read it with."""
    return os.fsencode(argument).decode()


def sample(arguments: argparse.Namespace) -> None:
    """Write the samples that the arguments ask for.

    Raises:
        UserError: an argument cannot be used.
    """
    # What can be refused without torch is refused before it loads.
    path = find_checkpoint(arguments.ckpt)
    if arguments.ckpt is None:
        print(f"Sampling {path}", file=sys.stderr)
    prompt = arguments.prompt if arguments.prompt_file is None else read_prompt(arguments.prompt_file)
    if arguments.seed is not None and not 0 <= arguments.seed < 2**63:
        raise UserError(f"seed must be at least 0 and below 2**63; got {arguments.seed}")

    import torch

    from chargpt.checkpoint import load_checkpoint
    from chargpt.sampling import Sampling, generate

    given = {field.name: getattr(arguments, field.name) for field in fields(Sampling)}
    sampling = Sampling(**{name: value for name, value in given.items() if value is not None})
    device = pick_device(arguments.device)
    model, tokenizer = load_checkpoint(path, device)
    try:
        prompt_ids = tokenizer.encode(prompt, skip_unknown=arguments.unknown == "skip")
    except UnknownCharacterError as error:
        raise UserError(f"the prompt has {error}; --unknown skip drops them") from None
    start = prompt_ids or tokenizer.encode("\n", skip_unknown=True) or [0]  # the lecture, too, begins with a new line
    generator = torch.Generator(device)
    if arguments.seed is None:
        generator.seed()
    else:
        generator.manual_seed(arguments.seed)

    with ExitStack() as stack:
        out = sys.stdout if arguments.out is None else stack.enter_context(open_output(arguments.out))
        ids = torch.tensor([start], device=device)
        tokens = generate(model, ids, sampling, generator)
        for n, characters in enumerate(side_by_side(map(torch.Tensor.tolist, tokens), sampling.num_samples)):
            if sampling.num_samples > 1:
                out.write(f"--- sample {n + 1} of {sampling.num_samples} ---\n")
            out.write(tokenizer.decode(prompt_ids))
            for text in until(arguments.stop, map(tokenizer.decode, characters)):
                out.write(text)
                out.flush()
            out.write("\n")


def read_prompt(file: str) -> str:
    """The text of a UTF-8 file, or of standard input for `-`."""
    try:
        return (sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()).decode()
    except OSError as error:
        raise UserError(f"cannot read the prompt from {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the prompt in {file} is not UTF-8 at byte offset {error.start}") from error


def open_output(file: str) -> TextIO:
    try:
        return open(file, "w", encoding="utf-8", newline="")
    except OSError as error:
        raise UserError(f"cannot write to {file}: {error.strerror}") from error


def pick_device(name: str) -> "torch.device":
    """The device of that name; `auto` is the GPU where there is one."""
    import torch

    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"cannot use the device {name}: {str(error).splitlines()[0]}") from error


def side_by_side(rows: Iterator[list[int]], columns: int) -> Iterator[Iterator[list[int]]]:
    """The columns of rows one after the other, the first while the rows still come: texts are written all at once, and
    the first is shown as it grows."""
    seen: list[list[int]] = []

    def first() -> Iterator[list[int]]:
        for row in rows:
            seen.append(row)
            yield row[:1]

    yield first()
    seen.extend(rows)  # where the first text was stopped before its end
    for column in range(1, columns):
        yield iter([row[column : column + 1] for row in seen])


def until(stop: str | None, characters: Iterator[str]) -> Iterator[str]:
    """The characters up to `stop`, itself left out: what may be its beginning is held back until that is sure."""
    if not stop:
        yield from characters
        return
    held = ""
    for character in characters:
        held += character
        if held.endswith(stop):
            yield held[: -len(stop)]
            return
        keep = next((n for n in range(min(len(stop), len(held)), 0, -1) if stop.startswith(held[-n:])), 0)
        yield held[: len(held) - keep]
        held = held[len(held) - keep :]
    yield held


if __name__ == "__main__":
    sys.exit(main())

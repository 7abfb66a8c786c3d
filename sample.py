"""Write text with a trained model: `python sample.py --prompt "ROMEO:"`."""

import argparse
import codecs
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields
from itertools import chain, tee
from pathlib import Path

from chargpt.checkpoint import find_checkpoint, load_checkpoint
from chargpt.command_line import CKPT, DEVICE, Parser, file_name, open_output, pick_device
from chargpt.errors import UserError, escape
from chargpt.tokenizer import Tokenizer, UnknownCharacterError


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = Parser(prog="python sample.py", description="Write text with a trained model.")
    parser.add_argument("--ckpt", **CKPT)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", default="", metavar="TEXT", help="how it begins (a new line)")
    prompt.add_argument("--prompt-file", type=file_name, metavar="FILE", help="the prompt; - is standard input")
    parser.add_argument("--unknown", choices=("error", "skip"), default="error", help="unknown characters of a prompt")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="characters to write (500)")
    parser.add_argument("--temperature", type=float, metavar="T", help="0: always the likeliest (1)")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw among the K likeliest only")
    parser.add_argument("--top-p", type=float, metavar="P", help="draw among the likeliest, P in all")
    parser.add_argument("--num-samples", type=int, metavar="N", help="how many texts (1)")
    parser.add_argument("--window", metavar="WAY", help="past the window: exact, the lecture's way, or stride, faster")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed writes the same text")
    parser.add_argument("--stop", default="", metavar="TEXT", help="end before the first such TEXT")
    parser.add_argument("--out", type=file_name, metavar="FILE", help="write there, not to the terminal")
    parser.add_argument("--device", **DEVICE)
    return parser.run(sample, argv)


def sample(arguments: argparse.Namespace) -> None:
    """Write the samples."""
    path = find_checkpoint(arguments.ckpt)
    if (file := arguments.prompt_file) is None:
        prompt = os.fsencode(arguments.prompt)
    else:
        prompt = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()

    import torch  # takes a while, and the checks above do not need it

    from chargpt.generation import Sampling, generate

    given = {field.name: getattr(arguments, field.name) for field in fields(Sampling)}
    sampling = Sampling(**{name: value for name, value in given.items() if value is not None})
    device = pick_device(arguments.device)
    model, tokenizer = load_checkpoint(path, device)
    prompt_ids = encode(tokenizer, prompt, "the prompt", skip_unknown=arguments.unknown == "skip")
    stop = encode(tokenizer, os.fsencode(arguments.stop), "--stop")
    start = prompt_ids or tokenizer.encode("\n", skip_unknown=True) or [0]  # the lecture, too, begins with a new line
    generator = torch.Generator(device)
    generator.manual_seed((generator.seed() if arguments.seed is None else arguments.seed) % 2**64)
    tokens = generate(model, torch.tensor([start], device=device), sampling, generator)
    tokens = chain([next(tokens)], tokens)  # an error up to here leaves the output file as it was
    with open_output(arguments.out) as out:
        for n, rows in enumerate(tee(map(torch.Tensor.tolist, tokens), sampling.num_samples)):  # the first one streams
            ids = (row[n] for row in rows)
            if sampling.num_samples > 1:
                out.write(f"--- sample {n + 1} of {sampling.num_samples} ---\n")
            parts = chain([prompt_ids], ([id] for id in until(stop, ids)))
            for text in decoded(parts, tokenizer, to_terminal=out.isatty()):
                out.write(text)
                if out.isatty() or "\n" in text:  # notebooks drop output that comes in many pieces
                    out.flush()
            out.write("\n")


def encode(tokenizer: Tokenizer, text: bytes, what: str, *, skip_unknown: bool = False) -> list[int]:
    """The ids of a UTF-8 text; of any bytes for a model of bytes."""
    if tokenizer.characters is None:
        return list(text)
    try:
        return tokenizer.encode(text.decode("utf-8-sig").replace("\r\n", "\n"), skip_unknown=skip_unknown)
    except UnicodeDecodeError as error:
        raise UserError(f"{what} is not UTF-8 at byte offset {error.start}") from error
    except UnknownCharacterError as error:
        hint = "; --unknown skip drops them" if what == "the prompt" else ""
        if "\\" in error.characters:
            hint = r"; for a new line, type $'\n' in bash, or use --prompt-file"
        raise UserError(f"{what} has {error}{hint}") from None


def until(stop: list[int], ids: Iterator[int]) -> Iterator[int]:
    """Ids up to and without the first `stop`; ids that may be its beginning are held back."""
    held: list[int] = []
    for id in ids:
        held.append(id)
        if held == stop:
            return
        while held and stop[: len(held)] != held:
            yield held.pop(0)
    yield from held


def decoded(parts: Iterable[list[int]], tokenizer: Tokenizer, *, to_terminal: bool) -> Iterator[str]:
    """A text that comes in parts. On a terminal, CR LF is a new line and other control characters are escaped; a file
    gets bytes as they are, by streams with `surrogateescape`."""
    texts: Iterator[str] = map(tokenizer.decode, parts)
    if tokenizer.characters is None:  # a part may end within a character
        texts = codecs.iterdecode(map(bytes, parts), "utf-8", "replace" if to_terminal else "surrogateescape")
    return (escape(text.replace("\r", "")) for text in texts) if to_terminal else texts


if __name__ == "__main__":
    sys.exit(main())

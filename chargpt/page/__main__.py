"""Make a page of a trained model: `python -m chargpt.page --ckpt RUN_OR_FILE --out page.html`."""

import argparse
import sys
from pathlib import Path

from chargpt import commands
from chargpt.checkpoint import find_checkpoint
from chargpt.commands import Parser, check_output, file_name
from chargpt.errors import UserError, one_line, tell
from chargpt.files import write_whole
from chargpt.page.weights import KINDS

MARK = b'<meta name="generator" content="chargpt">'  # by which a page of ours is known
WHERE = 2_000  # bytes, within which it stands


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        Its exit status, as `chargpt.commands.run` has it.
    """
    return commands.run(build_parser(), write_page, argv, "a smaller model needs less")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m chargpt.page",
        description="Make a page of a trained model: one HTML file that writes and explains its text in any browser,"
        " without a network.",
    )
    parser.add_argument(
        "--ckpt", type=file_name, metavar="RUN_OR_FILE", help="a run's folder or a checkpoint (default: newest run)"
    )
    parser.add_argument(
        "--out", type=file_name, default="page.html", metavar="FILE", help="the page (default: page.html)"
    )
    parser.add_argument(
        "--weights",
        choices=tuple(KINDS),
        default="fp16",
        help="two bytes for each weight, or one: half the size, for a slightly higher loss (default: fp16)",
    )
    return parser


def write_page(arguments: argparse.Namespace) -> None:
    """Make the page that the arguments ask for.

    Raises:
        UserError: an argument or the checkpoint cannot be used, or the page cannot be written.
    """
    path, out = find_checkpoint(arguments.ckpt), Path(arguments.out)
    check_output(arguments.out, path)
    _check_replaced(out)
    if arguments.ckpt is None:
        tell(f"Making a page of {path}")

    from chargpt.page.build import build_page

    page = build_page(path, arguments.weights).encode()
    _check_replaced(out)  # making it took a while
    try:
        write_whole(out, page)
    except OSError as error:
        raise UserError(f"cannot write {one_line(out)}: {error.strerror}") from error
    tell(f"{out} is a page of {len(page) / 1e6:.1f} MB: open it in a browser")


def _check_replaced(out: Path) -> None:
    """Refuse to write over what is no page of ours.

    Raises:
        UserError: it is none.
    """
    try:
        if not out.parent.is_dir():
            raise UserError(f"cannot write {one_line(out)}: there is no folder {one_line(out.parent)}")
        if not out.exists():
            return
        if out.is_file():
            with out.open("rb") as file:
                if MARK in file.read(WHERE):
                    return
    except OSError as error:
        raise UserError(f"cannot write {one_line(out)}: {error.strerror}") from error
    raise UserError(f"{one_line(out)} is there and is no page of chargpt: remove it, or name another by --out")


if __name__ == "__main__":
    sys.exit(main())

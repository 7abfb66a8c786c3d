"""Make a page of a trained model: `python -m chargpt.page --ckpt RUN_OR_FILE --out page.html`."""

import argparse
import sys
from pathlib import Path

from chargpt.checkpoint import find_checkpoint
from chargpt.command_line import Parser, file_name
from chargpt.errors import UserError, tell
from chargpt.files import write
from chargpt.page.build import KINDS, build_page


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    return build_parser().run(write_page, argv)


def build_parser() -> Parser:
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
    """Make the page and write it."""
    path, out = find_checkpoint(arguments.ckpt), Path(arguments.out)
    if out.suffix not in (".html", ".htm"):  # no checkpoint or text is written over by a slip
        raise UserError(f"--out names an HTML file, such as page.html; got {out}")
    if arguments.ckpt is None:
        tell(f"Making a page of {path}")
    page = build_page(path, arguments.weights).encode()
    write(out, page)
    tell(f"{out} is a page of {len(page) / 1e6:.1f} MB: open it in a browser")


if __name__ == "__main__":
    sys.exit(main())

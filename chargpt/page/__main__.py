"""Make a page of a trained model: `python -m chargpt.page --ckpt RUN_OR_FILE --out page.html`."""

import argparse
import sys
from pathlib import Path

from chargpt.checkpoint import find_checkpoint
from chargpt.command_line import CKPT, Parser, file_name
from chargpt.errors import UserError, tell
from chargpt.files import write
from chargpt.page.build import KINDS, build_page


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = Parser(prog="python -m chargpt.page", description="Make one HTML file that runs and explains a model.")
    parser.add_argument("--ckpt", **CKPT)
    parser.add_argument("--out", type=file_name, default="page.html", metavar="FILE", help="the page (page.html)")
    parser.add_argument("--weights", choices=KINDS, default="fp16", help="fp16, or int8: half the size (fp16)")
    return parser.run(write_page, argv)


def write_page(arguments: argparse.Namespace) -> None:
    """Make the page and write it."""
    path, out = find_checkpoint(arguments.ckpt), Path(arguments.out)
    if out.suffix not in (".html", ".htm"):  # no checkpoint or text is written over by a slip
        raise UserError(f"--out names an HTML file, such as page.html; got {out}")
    page = build_page(path, arguments.weights).encode()
    write(out, page)
    tell(f"{out} is a page of {len(page) / 1e6:.1f} MB: open it in a browser")


if __name__ == "__main__":
    sys.exit(main())

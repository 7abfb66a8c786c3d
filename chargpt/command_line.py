"""What the command lines share: arguments, outputs, tables, the device."""

import argparse
import contextlib
import io
import os
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from chargpt import errors
from chargpt.errors import UserError, escape, first_line

if TYPE_CHECKING:
    import torch

STARTED_HERE = "chargpt-"  # TORCHELASTIC_RUN_ID begins with it in processes that train.py starts
TOGETHER = 0.5  # seconds within which signals count as one: a launcher forwards Ctrl-C, a key is hit twice


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line like any other wrong input."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help shows the options")

    def run(self, action: Callable[[argparse.Namespace], None], argv: list[str] | None) -> int:
        """Parse the arguments (by default the process's), run the command and return its exit status."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                # UTF-8, whatever the locale; `surrogateescape` writes bytes that are not UTF-8 as they are
                stream.reconfigure(encoding="utf-8", errors="surrogateescape")
        return errors.run(lambda: action(self.parse_args(argv)))


def file_name(argument: str) -> str:
    """The name of a file; `~` is the home folder."""
    return os.path.expanduser(argument)


CKPT: dict[str, Any] = {  # options of --ckpt and --device in every command
    "type": file_name,
    "metavar": "RUN_OR_FILE",
    "help": "a run's folder, a shared one, or a checkpoint (default: the newest run)",
}
DEVICE: dict[str, Any] = {"default": "auto", "help": "cpu, cuda, cuda:1, mps (default: the fastest there is)"}


@contextlib.contextmanager
def open_output(file: str | None) -> Iterator[TextIO]:
    """Where text goes: a file, or standard output."""
    try:
        if file is not None:
            with open(file, "w", encoding="utf-8", errors="surrogateescape", newline="") as out:
                yield out
        else:
            yield sys.stdout
            sys.stdout.flush()
    except BrokenPipeError:
        raise  # a reader such as `head` has ended: no error, see `errors.run`
    except OSError as error:
        raise UserError(f"cannot write to {file or 'standard output'}: {error.strerror}") from error


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under their heads, aligned to the right, but the last one to the left."""
    lines = [[escape(cell).replace("\n", "\\n") for cell in row] for row in (head, *rows)]
    *widths, _ = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join([*map(str.rjust, line, widths), line[-1]]) for line in lines)


def launched_here() -> bool:
    """Whether train.py started this process, as one of several for a run on several devices."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "").startswith(STARTED_HERE)


def quoted(arguments: Sequence[str]) -> str:
    """A command line to paste into the shell of this system."""
    return subprocess.list2cmdline(arguments) if sys.platform == "win32" else shlex.join(arguments)


def pick_device(name: str) -> "torch.device":
    """The device of that name; `auto` is the GPU, if there is one."""
    import torch

    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.ones(1, device=name).device
    except Exception as error:  # the kind depends on the device
        raise UserError(f"cannot use the device {name}: {first_line(error)}") from error

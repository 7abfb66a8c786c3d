"""What the command lines of this project share: how they fail, and where their text goes."""

import argparse
import contextlib
import io
import os
import stat
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from chargpt.errors import NonFiniteError, UserError, first_line, is_out_of_memory, tell
from chargpt.shared import FILES, WEIGHTS

if TYPE_CHECKING:
    import torch


def run(
    parser: argparse.ArgumentParser,
    action: Callable[[argparse.Namespace], None],
    argv: list[str] | None,
    less_memory: str,
) -> int:
    """Parse a command line, do what it says, and tell in a line what went wrong.

    Args:
        argv: the arguments; None stands for the process's own.
        less_memory: what to do where there is not enough.

    Returns:
        The exit status: 0, 1 where memory or the model's numbers fail, 2 for input that cannot be used, 130 for Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8")  # text is UTF-8 here whatever the terminal's locale says
    try:
        arguments = parser.parse_args(argv)
        if [] in vars(arguments).values():  # what argparse makes of --ckpt=--
            raise UserError("an option has no value")
        action(arguments)
    except UserError as error:
        tell(f"error: {error}")
        return 2
    except NonFiniteError as error:
        tell(f"error: {error}")
        return 1
    except OSError as error:
        tell(f"error: {first_line(error)}")
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        tell(f"error: out of memory: {less_memory}")
        return 1
    except KeyboardInterrupt:
        tell("")
        return 130
    return 0


class Parser(argparse.ArgumentParser):
    """Tells of a wrong command line as of any other wrong input."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help shows what there is")

    def print_help(self, file: object = None) -> None:
        with open_output(None) as out:
            out.write(self.format_help())


def utf8_text(argument: str) -> str:
    """The argument as UTF-8, whatever encoding the locale made Python read it with."""
    try:
        return os.fsencode(argument).decode()
    except UnicodeError:
        raise argparse.ArgumentTypeError("the text is not UTF-8") from None


def file_name(argument: str) -> str:
    """The name of a file."""
    if not argument:
        raise argparse.ArgumentTypeError("a file has a name")
    if "\0" in argument:
        raise argparse.ArgumentTypeError("no file has a NUL in its name")
    return argument


def check_output(out: str, *files: str | os.PathLike[str] | int | None) -> None:
    """Refuse to write over what is read, or over a file of a run.

    Args:
        files: that are read; 0 is standard input.

    Raises:
        UserError: it would be lost.
    """
    for file in files:
        if _is_same_file(out, file):
            raise UserError(f"--out would overwrite {file or 'the prompt'}")
    if os.path.exists(out) and _belongs_to_a_run(Path(os.path.realpath(out))):
        raise UserError(f"--out would overwrite a file of a run: {out}")


def _belongs_to_a_run(file: Path) -> bool:
    """Whether a file is a checkpoint, or lies in the folder of a run, or beside weights that are shared."""
    shared = file.name in FILES and file.with_name(WEIGHTS).is_file()
    of_a_run = any((parent / ".hydra" / "config.yaml").is_file() for parent in file.parents)
    return shared or file.suffix == ".ckpt" or of_a_run


def _is_same_file(out: str, file: str | os.PathLike[str] | int | None) -> bool:
    """Whether what is written would take the place of a file that is read."""
    try:
        return file is not None and os.path.samefile(out, file) and stat.S_ISREG(os.stat(out).st_mode)
    except OSError:  # one of them does not exist
        return False


@contextlib.contextmanager
def open_output(file: str | None) -> Iterator[TextIO]:
    """Where the text goes: a file, or standard output.

    Raises:
        UserError: it cannot be written.
    """
    if file is None and sys.stdout is None:
        raise UserError("cannot write the text: standard output is closed")
    try:
        with contextlib.ExitStack() as stack:
            out = sys.stdout
            if file is not None:
                out = stack.enter_context(open(file, "w", encoding="utf-8", newline=""))
            yield out
            out.flush()  # what fails at the end is to be told, too
    except OSError as error:
        if file is None:
            _drop_output()
        if not isinstance(error, BrokenPipeError):  # the reader, `head` say, has had enough
            raise UserError(f"cannot write to {file or 'standard output'}: {error.strerror}") from error


def _drop_output() -> None:
    """Python writes what is left when it ends; that would fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def pick_device(name: str) -> "torch.device":
    """The device of that name; `auto` is the GPU where there is one.

    Raises:
        UserError: there is no such device.
    """
    import torch

    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        with warnings.catch_warnings(action="ignore"):
            one = torch.ones(1, device=name)
            if (one + one).item() == 2 and (one.device.index or 0) == (torch.device(name).index or 0):
                return one.device
        raise UserError(f"cannot use the device {name}: there is none of that number")
    except UserError:
        raise
    except Exception as error:  # what a device that is not there raises depends on the device
        raise UserError(f"cannot use the device {name}: {first_line(error)}") from error

"""The errors that people are told of in one line."""

import contextlib
import difflib
import re
import sys
from collections.abc import Iterable

# Control characters but newline and tab, line separators, what turns the direction of text, and lone surrogates
UNPRINTABLE = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e007f]"
)


class UserError(ValueError):
    """Something in the input is wrong; the message says what, and what would be right.

    The command lines show it as one line, without a traceback, and exit with status 2.
    """


class NonFiniteError(RuntimeError):
    """The loss or the weights are no longer finite: going on, or saving, would be of no use."""


class Stopped(SystemExit):
    """A run was asked to stop, and did so between two steps.

    Attributes:
        code: the status that the process ends with.
        step: optimizer steps taken.
        saved: whether the run can go on from there.
    """

    def __init__(self, code: int, step: int, *, saved: bool):
        super().__init__(code)
        self.step = step
        self.saved = saved

    def __reduce__(self) -> tuple[object, ...]:
        """To another process, the one that launched a sweep's jobs, only the status goes."""
        return SystemExit, (self.code,)


def first_line(error: BaseException) -> str:
    """What an error says, in one line: its first, and the next where that one ends with a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return (" ".join(lines[:2]) if lines[0].endswith(":") else lines[0]).rstrip(".:")


def printable(text: str) -> str:
    """A text for a terminal: what could command it, and what UTF-8 cannot say, is escaped, as in `\\x1b`."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(value: object) -> str:
    """A name or a message as it can stand in a line of a terminal, whatever characters a stranger gave it."""
    return printable(str(value)).replace("\n", "\\n").replace("\t", "\\t")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python or PyTorch failed for want of memory; the latter often says so in words only."""
    return isinstance(error, MemoryError) or bool(re.search(r"out of memory|can't allocate memory", str(error)))


def did_you_mean(key: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a message about an unknown key: the nearest known one, or all of them.

    Args:
        prefix: what stands before a key when it is typed, such as `trainer.`.
    """
    names = list(known)
    close = difflib.get_close_matches(key, names, n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else f" (there are {', '.join(sorted(names))})"


def tell(message: str) -> None:
    """A line on standard error, if there is one that takes it."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(one_line(message), file=sys.stderr, flush=True)

"""The errors that people are told of in one line."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something in the input is wrong; the message says what, and what would be right.

    `train.py` and `sample.py` show it as one line, without a traceback, and exit with status 2.
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


def first_line(error: BaseException) -> str:
    """What an error says, in one line: its first, and the next where that one ends with a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return (" ".join(lines[:2]) if lines[0].endswith(":") else lines[0]).rstrip(".:")


def did_you_mean(key: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a message about an unknown key: the nearest known one, or all of them.

    Args:
        prefix: what stands before a key when it is typed, such as `trainer.`.
    """
    names = list(known)
    close = difflib.get_close_matches(key, names, n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else f" (there are {', '.join(sorted(names))})"

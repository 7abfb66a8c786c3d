"""What to print about an error, and the exit status: one route for all commands."""

import contextlib
import difflib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable

log = logging.getLogger(__name__)

# Control characters but newline and tab, line separators, marks that reverse the direction of text, lone surrogates
CONTROL = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e007f]"
)


class UserError(ValueError):
    """The input is wrong; the message says what is wrong and what to do. One line, with status 2."""


class NonFiniteError(RuntimeError):
    """The loss or the weights are no longer finite. One line, with status 1."""


class Stopped(SystemExit):
    """A signal ended the run between two steps; `code` is the exit status of the process."""


def explain(error: BaseException) -> tuple[str, int] | None:
    """The line to show for an error and the exit status; None for a bug."""
    text = str(error)
    if isinstance(error, UserError | NonFiniteError):
        return text, 2 if isinstance(error, UserError) else 1
    if isinstance(error, MemoryError) or re.search(r"out of memory|can't allocate memory", text):
        return "out of memory: a smaller batch (data.batch_size, --num-samples), context or model needs less", 1
    if "no kernel image is available" in text or "NVIDIA driver on your system is too old" in text:
        advice = "install a PyTorch that fits it (pytorch.org), or use trainer.accelerator=cpu (--device cpu)"
        return f"this PyTorch cannot use the GPU or its driver ({first_line(error)}): {advice}", 1
    if type(error).__name__ == "MisconfigurationException" or text.startswith("Early stopping conditioned on"):
        return first_line(error), 2  # Lightning's, of an argument such as a callback's `monitor`
    if isinstance(error, OSError):
        return f"{error.strerror or first_line(error)}{f': {error.filename}' if error.filename else ''}", 2
    return None


def in_words(error: Exception) -> str:
    """The line to show for an error, bugs included."""
    known = explain(error)
    return known[0] if known else f"unexpected {type(error).__name__}: {first_line(error)}"


def report(error: Exception) -> int:
    """Log an error in one line, with a traceback if it is a bug; returns the exit status."""
    known = explain(error)
    log.error("error: %s", one_line(in_words(error)), exc_info=None if known else error)
    return known[1] if known else 1


def run(action: Callable[[], object], reporter: Callable[[Exception], int] = report) -> int:
    """Run a command, report its error and return the exit status: 0, 1 if memory, the device or the numbers failed or
    there is a bug (the only case with a traceback), 2 for wrong input, 130 for Ctrl-C."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as under a daemon
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8", errors="replace"))  # noqa: SIM115
    if logging.lastResort is not None:  # writes to standard error until logging is configured
        logging.lastResort.setFormatter(EscapingFormatter())
    try:
        action()
        sys.stdout.flush()  # a full disk shows here
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        status = 0 if isinstance(error, BrokenPipeError) else reporter(error)  # a reader such as `head` has ended
        try:
            sys.stdout.flush()
        except OSError:  # Python flushes once more at exit, and would end with status 120
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return status
    return 0


def first_line(error: BaseException) -> str:
    """The first line of an error's message, joined with the next one if it ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return (" ".join(lines[:2]) if lines[0].endswith(":") else lines[0]).rstrip(".:")


def did_you_mean(key: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a message about an unknown key: the nearest known one, or all of them. `prefix` precedes a key when it
    is typed, such as `trainer.`."""
    names = list(known)
    close = difflib.get_close_matches(key, names, n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else f" (there are {', '.join(sorted(names))})"


def escape(text: str) -> str:
    """A text for a terminal or a log, with control characters as in `\\x1b`."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """The same with line breaks escaped, too: a name from a foreign file could look like another message."""
    return escape(text).replace("\n", "\\n")


class EscapingFormatter(logging.Formatter):
    """Escapes log messages: a name or a value from a foreign file could control the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return escape(super().format(record))


def tell(message: str) -> None:
    """Print a line on standard error, if it is open."""
    with contextlib.suppress(OSError):
        print(escape(message), file=sys.stderr, flush=True)

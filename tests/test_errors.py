"""The line that is shown of an error, and the exit status."""

import errno
import logging
import pickle
import unicodedata

import pytest

from chargpt import errors
from chargpt.errors import EscapingFormatter, NonFiniteError, Stopped, UserError, escape, one_line


def test_control_characters_are_escaped():
    """All that a terminal obeys, and nothing that people write."""
    assert escape("\x1b]52;c;cm0=\x07") == r"\x1b]52;c;cm0=\x07"
    controls = [chr(n) for n in range(0x110000) if unicodedata.category(chr(n)) in ("Cc", "Cs", "Zl", "Zp")]
    assert all(escape(char).isascii() for char in controls if char not in "\n\t")
    for text in ("a b\tc\nd", "道可道 👩🏽‍🚀 e\u0301 שָׁלוֹם \ufeff", "\\"):
        assert escape(text) == text
    assert one_line("a\x07\nb") == r"a\x07\nb"
    record = logging.LogRecord("x", logging.INFO, "", 0, "the text %s", ("\x1b[2J",), None)
    assert EscapingFormatter().format(record) == r"the text \x1b[2J"


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("no such\ntext"), 2, r"error: no such\ntext"),
        (NonFiniteError("the loss is nan"), 1, "error: the loss is nan"),
        (MemoryError(), 1, "out of memory"),
        (RuntimeError("Early stopping conditioned on metric `val_loss` which is not available."), 2, "val_loss"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 1, "out of memory"),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), 1, "install a PyTorch"),
        (RuntimeError("The NVIDIA driver on your system is too old (found version 1)"), 1, "install a PyTorch"),
        (OSError(errno.ENOSPC, "No space left on device", "a/last.ckpt"), 2, "No space left on device: a/last.ckpt"),
        (KeyError("a bug"), 1, "error: unexpected KeyError: 'a bug'"),
        (AssertionError("raised:\nno compiler.\nMore"), 1, "error: unexpected AssertionError: raised: no compiler\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_errors_in_one_line(error, status, message, caplog):
    def fails():
        raise error

    assert errors.run(fails) == status
    assert message in caplog.text
    assert ("Traceback" in caplog.text) == ("unexpected" in message)


def test_a_stop_ends_the_process_with_its_code():
    """No handler of errors catches it; a sweep's job in another process sends it to the first one."""
    stopped = pickle.loads(pickle.dumps(Stopped(143)))
    assert stopped.code == 143
    assert not isinstance(stopped, Exception)

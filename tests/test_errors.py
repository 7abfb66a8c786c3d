import unicodedata

import pytest

from chargpt.errors import NonFiniteError, Stopped, UserError, did_you_mean, is_out_of_memory, printable


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("n_layr", "; did you mean model.n_layer?"),
        ("embd", "; did you mean model.n_embd?"),
        ("zzz", " (there are n_embd, n_head, n_layer)"),
        ("", " (there are n_embd, n_head, n_layer)"),
    ],
)
def test_the_nearest_key_or_all(key, expected):
    assert did_you_mean(key, iter(["n_layer", "n_head", "n_embd"]), "model.") == expected


def test_printable():
    """Nothing of what a terminal obeys is left, and all of what people write."""
    assert printable("\x1b]52;c;cm0=\x07") == r"\x1b]52;c;cm0=\x07"
    assert printable("\0\r\x7f\x80\x9b\u2028\u202e\u2066\udcff") == r"\x00\r\x7f\x80\x9b\u2028\u202e\u2066\udcff"
    controls = [chr(n) for n in range(0x110000) if unicodedata.category(chr(n)) in ("Cc", "Cs", "Zl", "Zp")]
    assert all(printable(char).isascii() for char in controls if char not in "\n\t")
    for text in ("a b\tc\nd", "道可道 👩🏽‍🚀 e\u0301 שָׁלוֹם \ufeff", "\\"):
        assert printable(text) == text


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate"), True),
        (RuntimeError("size mismatch"), False),
    ],
)
def test_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected


def test_a_stop_ends_the_process_with_its_code():
    """It is no error that a handler of errors would swallow."""
    stopped = Stopped(143, step=7, saved=True)
    assert (stopped.code, stopped.step) == (143, 7)
    assert not isinstance(stopped, Exception)
    assert not issubclass(NonFiniteError, UserError)

import pytest

from chargpt.errors import NonFiniteError, Stopped, UserError, did_you_mean


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


def test_a_stop_ends_the_process_with_its_code():
    """It is no error that a handler of errors would swallow."""
    stopped = Stopped(143, step=7, saved=True)
    assert (stopped.code, stopped.step) == (143, 7)
    assert not isinstance(stopped, Exception)
    assert not issubclass(NonFiniteError, UserError)

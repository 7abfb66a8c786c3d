"""The progress of a run on the terminal."""

import sys
import time

import pytest
from faults import clock
from helpers import start

from chargpt.callbacks import progress


def lines(caplog):
    return [line for line in caplog.messages if line.startswith("step ")]


def steps(caplog):
    return [line.split(",")[0] for line in lines(caplog)]


@pytest.fixture
def slow(monkeypatch):
    """Overrides for steps of two minutes on a clock for tests."""
    monkeypatch.setattr(time, "perf_counter", clock)
    return ["+callbacks.slow._target_=faults.Slow", "+callbacks.slow.step=120", "trainer.val_check_interval=100"]


def test_a_terminal_has_a_bar(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    start(tmp_path, *tiny)
    shown = capsys.readouterr().err
    for each in ("0/6 [00:00<?", "6/6 [00:", "loss ", "val loss ", "chars/s"):  # steps done and to do, and the time
        assert each in shown


def test_elsewhere_a_line_follows_each_validation(tiny, tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    start(tmp_path, *tiny)
    assert "6/6 [" not in capsys.readouterr().err
    assert steps(caplog) == ["step 3/6", "step 6/6"]


def test_slow_steps_have_a_line_each_if_they_are_logged(tiny, slow, tmp_path, caplog):
    caplog.set_level("INFO")
    start(tmp_path, *tiny, *slow)
    assert steps(caplog) == ["step 2/6", "step 4/6", "step 6/6", "step 6/6"]
    assert lines(caplog)[1].endswith(", 04:00 left")


@pytest.mark.parametrize(("much", "advice"), [(1e3, "; experiment=cpu trains a smaller model"), (1e9, "")])
def test_a_long_run_is_announced_once_after_three_steps(much, advice, tiny, slow, tmp_path, caplog, monkeypatch):
    """Of 63. With a small model, a smaller one is no advice."""
    monkeypatch.setattr(progress, "MUCH", much)
    caplog.set_level("INFO")
    start(tmp_path, *tiny, *slow, "trainer.max_steps=63")
    [announced] = [n for n, line in enumerate(caplog.messages) if "This run will take" in line]
    assert caplog.messages[announced].startswith(f"This run will take about 2.0 hours on this CPU{advice}")
    assert ("experiment=cpu" in caplog.messages[announced]) == bool(advice)
    assert [line.split(",")[0] for line in caplog.messages[:announced] if line.startswith("step ")] == ["step 2/63"]


def test_a_run_of_half_an_hour_is_not_announced(tiny, slow, tmp_path, caplog):
    """At step 3 of 17, 28 minutes are left."""
    caplog.set_level("INFO")
    start(tmp_path, *tiny, *slow, "trainer.max_steps=17")
    assert "will take" not in caplog.text

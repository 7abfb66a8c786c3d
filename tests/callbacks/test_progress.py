import sys
import time

import pytest
from faults import clock
from helpers import start


def test_a_bar_on_a_terminal(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    start(tmp_path, *tiny)
    shown = capsys.readouterr().err
    assert "0/6 [00:00<?" in shown  # steps done and to do, time gone and left
    assert "6/6 [00:" in shown
    assert "loss " in shown
    assert "val loss " in shown
    assert "chars/s" in shown


def test_no_bar_elsewhere(tiny, tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    start(tmp_path, *tiny)
    assert "6/6 [" not in capsys.readouterr().err
    assert [line.split(",")[0] for line in lines(caplog)] == ["step 3/6", "step 6/6"]  # one after each validation


def lines(caplog):
    return [line for line in caplog.messages if line.startswith("step ")]


@pytest.fixture
def slow(monkeypatch):
    """Overrides by which a step takes two minutes, on a clock of the test's own."""
    monkeypatch.setattr(time, "perf_counter", clock)
    return ["+callbacks.slow._target_=faults.Slow", "+callbacks.slow.step=120", "trainer.val_check_interval=100"]


def test_a_line_from_time_to_time(tiny, slow, tmp_path, caplog):
    """Every logged step is two minutes after the one before: more than the ten seconds between two lines."""
    caplog.set_level("INFO")
    start(tmp_path, *tiny, *slow)
    assert [line.split(",")[0] for line in lines(caplog)] == ["step 2/6", "step 4/6", "step 6/6", "step 6/6"]
    assert lines(caplog)[1].endswith(", 04:00 left")


@pytest.mark.parametrize(
    ("much", "advice"),
    [(1e3, "; experiment=cpu trains a smaller model in minutes (Ctrl-C stops and saves this one)"), (1e9, "")],
)
def test_a_long_run_is_told_early(much, advice, tiny, slow, tmp_path, caplog, monkeypatch):
    """After three of 63 steps, once: two hours are left. A model that is small already is not advised against."""
    monkeypatch.setattr("chargpt.callbacks.progress.MUCH", much)
    caplog.set_level("INFO")
    start(tmp_path, *tiny, *slow, "trainer.max_steps=63")
    told = [n for n, line in enumerate(caplog.messages) if "This run will take" in line]
    assert len(told) == 1
    assert caplog.messages[told[0]] == f"This run will take about 2.0 hours on this CPU{advice}"
    assert [line.split(",")[0] for line in caplog.messages[: told[0]] if line.startswith("step ")] == ["step 2/63"]


def test_a_short_run_is_not(tiny, slow, tmp_path, caplog):
    """At step 3 of 17, 28 minutes are left."""
    caplog.set_level("INFO")
    start(tmp_path, *tiny, *slow, "trainer.max_steps=17")
    assert "will take" not in caplog.text

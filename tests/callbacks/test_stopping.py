"""What ends a run before its last step: signals, early stopping, time limits, a loss that is not finite."""

import logging
import os
import signal
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from helpers import STEPS, composed, interrupt, signal_at, start, state

from chargpt.callbacks import stopping
from chargpt.callbacks.stopping import SIGNALS, StopOnSignal
from chargpt.errors import NonFiniteError, Stopped
from chargpt.history import read_losses
from train import train

EARLY = (
    "+callbacks.early={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss, patience: 1,"
    " min_delta: 100}"
)


@pytest.fixture
def handlers():
    """Checks that a test leaves the signal handlers of this process unchanged."""
    before = [signal.getsignal(each) for each in SIGNALS]
    yield
    assert [signal.getsignal(each) for each in SIGNALS] == before


@pytest.fixture
def watching(handlers):
    """The callback during training."""
    callback = StopOnSignal()
    callback.on_train_start(SimpleNamespace(global_step=0, is_global_zero=True), None)
    yield callback
    callback.on_exception(None, None, None)


def send(signum):
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize("late", [0, 0.15])
def test_a_signal_lets_the_step_end_and_saves_it(late, tiny, tmp_path, handlers, caplog, capfd):
    """Signals within half a second count as one: a launcher forwards Ctrl-C, or a key is hit twice."""
    again = [each.replace(".stop.", ".again.") for each in signal_at(2, signum=2, late=late)]
    with pytest.raises(Stopped) as stop:
        start(tmp_path, *tiny, *signal_at(2, signum=2), *again)
    assert stop.value.code == 130
    assert state(tmp_path)["global_step"] == 3
    assert "SIGINT: stopping after this step" in capfd.readouterr().err
    assert f"Stopped after step 3; to resume: python train.py resume={tmp_path}" in caplog.text


@pytest.mark.parametrize(
    "line", [signal_at(5), ["trainer.max_steps=60", EARLY, *signal_at(6, when="on_validation_batch_start")]]
)
def test_a_signal_in_the_last_step_or_its_validation_counts_too(line, tiny, tmp_path, handlers):
    """The run is complete, but ends as stopped: otherwise a sweep would start its next job."""
    interrupt(tmp_path, *tiny, *line)
    assert state(tmp_path)["global_step"] == 6


def test_without_last_checkpoint_a_signal_saves_nothing_and_the_log_shows_it(tiny, tmp_path, handlers, caplog):
    interrupt(tmp_path, *tiny, "callbacks.last_checkpoint=null", *signal_at(2))
    assert "Stopped after step 3; nothing was saved" in caplog.text


def test_a_signal_may_interrupt_logging(watching, monkeypatch, capfd):
    """Neither logging nor `sys.stderr` is reentrant."""

    def busy(*_):
        raise RuntimeError("reentrant call")

    monkeypatch.setattr(logging.Logger, "handle", busy)
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=busy, flush=busy))
    send(signal.SIGTERM)
    assert capfd.readouterr().err == "SIGTERM: stopping after this step (again: stop at once)\n"


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_later_second_signal_ends_at_once(signum, watching, monkeypatch):
    monkeypatch.setattr(stopping, "TOGETHER", 0)
    send(signum)
    with pytest.raises(SystemExit) as stop:
        send(signum)
    assert stop.value.code == {signal.SIGINT: 130, 1: 129}.get(signum, 143)


def test_several_ranks_agree_on_logged_steps_only():
    """To agree, they wait for one another."""
    strategy = SimpleNamespace(reduce_boolean_decision=lambda stop, all: True)
    callback, stops = StopOnSignal(), []
    for step in (1, 2):
        trainer = SimpleNamespace(world_size=2, global_step=step, log_every_n_steps=2, max_steps=9, strategy=strategy)
        callback.on_step_end(trainer, None)
        stops.append(callback.stopping)
    assert stops == [False, True]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_under_nohup_a_run_survives_a_closed_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    callback = StopOnSignal()
    callback.on_train_start(SimpleNamespace(global_step=0, is_global_zero=True), None)
    handler = signal.getsignal(signal.SIGHUP)
    callback.on_exception(None, None, None)
    signal.signal(signal.SIGHUP, before)
    assert handler == signal.SIG_IGN


def test_in_another_thread_it_trains_without_handlers(tiny, tmp_path, handlers):
    thread = threading.Thread(target=train, args=(composed(*tiny, f"run_dir={tmp_path}"),))
    thread.start()
    thread.join()
    assert state(tmp_path)["global_step"] == 6


@pytest.mark.parametrize(("min_steps", "last"), [(1, 8), (20, 20)])
def test_min_steps_delay_early_stopping_and_nothing_else(min_steps, last, tiny, tmp_path, handlers):
    start(tmp_path, *tiny, *STEPS, "trainer.max_steps=200", EARLY, f"+trainer.min_steps={min_steps}")
    assert state(tmp_path)["global_step"] == read_losses(tmp_path)[-1].step == last
    assert state(tmp_path)["stopped_early"]


def test_before_min_steps_saves_and_signals_work_after_something_asked_to_stop(tiny, tmp_path, handlers):
    more = ["trainer.max_steps=200", "+trainer.min_steps=100", EARLY]
    interrupt(tmp_path, *tiny, *STEPS, *more, *signal_at(30))
    assert state(tmp_path)["global_step"] == 31
    previous = torch.load(tmp_path / "checkpoints" / "previous.ckpt", weights_only=True)
    assert previous["global_step"] == 30
    assert "stopped_early" not in previous


def test_a_time_limit_works_with_min_steps_and_is_not_early_stopping(tiny, tmp_path):
    limit = ["trainer.max_steps=100000", "trainer.max_time={seconds: 1}", "+trainer.min_steps=1"]
    start(tmp_path, *tiny, *STEPS, *limit)
    assert "stopped_early" not in state(tmp_path)
    assert state(tmp_path)["global_step"] < 100000


@pytest.mark.parametrize(
    ("step", "when", "message"),
    [
        (4, "on_train_batch_start", "the training loss is nan in step 5; earlier checkpoints are kept"),
        (6, "on_train_batch_end", "the weights are not finite after step 6"),
        (12, "on_validation_batch_start", "the validation loss is nan after step 12"),
    ],
)
def test_what_is_not_finite_ends_the_run_and_is_not_saved(step, when, message, tiny, tmp_path, handlers):
    harm = {"_target_": "faults.Poison", "step": step, "when": when}
    with pytest.raises(NonFiniteError, match=message):
        start(tmp_path, *tiny, *STEPS, *(f"+callbacks.harm.{key}={value}" for key, value in harm.items()))
    for name, every in [("last", 3), ("best", 4)] if step > 4 else [("last", 3)]:
        kept = torch.load(tmp_path / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert kept["global_step"] == (step - 1) // every * every
        assert all(value.isfinite().all() for key, value in kept["state_dict"].items() if key.startswith("net."))
    assert not list((tmp_path / "checkpoints").glob(".*"))

"""A run that is asked to stop, and one whose loss is no longer finite."""

import logging
import signal
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from helpers import STEPS, composed, signal_at, start, state

from chargpt.curve import read_curve
from chargpt.errors import NonFiniteError, Stopped, UserError
from chargpt.run.callbacks.stopping import StopOnSignal
from train import train

HANDLED = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
]


@pytest.fixture
def handlers():
    """The handlers of this process, and that they are put back in the end."""
    before = [signal.getsignal(each) for each in HANDLED]
    yield
    assert [signal.getsignal(each) for each in HANDLED] == before


@pytest.mark.parametrize(("signum", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_lets_the_step_end_and_saves_it(signum, status, tiny, tmp_path, handlers, caplog, capfd):
    with pytest.raises(Stopped) as stop:
        start(tmp_path, *tiny, *signal_at(2, signum=int(getattr(signal, signum))))
    assert (stop.value.code, stop.value.step) == (status, 3)
    assert state(tmp_path)["global_step"] == 3
    assert f"{signum}: stopping after this step" in capfd.readouterr().err
    assert f"Stopped after step 3. To resume: python train.py resume={tmp_path}" in caplog.text


def test_a_signal_that_comes_while_a_message_is_written(monkeypatch, capfd):
    """The stream is in use then: neither logging nor Python's own may write to it again."""

    def busy(*_):
        raise RuntimeError("reentrant call")

    monkeypatch.setattr(logging.Logger, "handle", busy)
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=busy, flush=busy))
    StopOnSignal()._on_signal(signal.SIGTERM, None)
    assert capfd.readouterr().err == "SIGTERM: stopping after this step (again: stop at once)\n"


@pytest.mark.parametrize(("step", "asked"), [(2, True), (3, False), (5, True)])
def test_several_processes_ask_one_another_now_and_then(step, asked):
    """In steps that are logged, here every second one, and after the last one, here the fifth."""
    strategy = SimpleNamespace(reduce_boolean_decision=lambda stop, all: True)
    trainer = SimpleNamespace(
        world_size=2, global_step=step, max_steps=5, log_every_n_steps=2, strategy=strategy, checkpoint_callbacks=[]
    )
    callback = StopOnSignal()
    callback.on_step_end(trainer, None)
    assert callback._stopping is asked


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="Windows has no SIGUSR1")
@pytest.mark.parametrize("scheduler", ["SLURM_JOB_ID", "SUBMITIT_EXECUTOR"])
@pytest.mark.parametrize("signum", ["SIGUSR1", "SIGUSR2"])
def test_signals_of_schedulers(signum, scheduler, tiny, tmp_path, handlers, monkeypatch):
    monkeypatch.setenv(scheduler, "1")
    with pytest.raises(Stopped) as stop:
        start(tmp_path, *tiny, *signal_at(2, signum=int(getattr(signal, signum))))
    assert stop.value.code == 143
    assert state(tmp_path)["global_step"] == 3


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_closed_terminal_that_nohup_ignores(tiny, tmp_path):
    kept = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        start(tmp_path, *tiny, *signal_at(2, signum=int(signal.SIGHUP)))
    finally:
        signal.signal(signal.SIGHUP, kept)
    assert state(tmp_path)["global_step"] == 6


def test_a_signal_in_the_last_step(tiny, tmp_path, handlers):
    """The run is complete, and still ends as one that was stopped: a sweep would go on otherwise."""
    with pytest.raises(Stopped) as stop:
        start(tmp_path, *tiny, *signal_at(5))
    assert (stop.value.code, stop.value.step) == (143, 6)
    assert state(tmp_path)["global_step"] == 6


def test_two_signals_within_half_a_second_count_as_one(tiny, tmp_path, handlers):
    """A launcher passes Ctrl-C on, or a finger slips: the step is saved all the same. Later, the second one ends it."""
    twice = [*signal_at(2, signum=int(signal.SIGINT)), *(e.replace(".stop.", ".more.") for e in signal_at(2, signum=2))]
    with pytest.raises(Stopped) as stop:
        start(tmp_path, *tiny, *twice)
    assert (stop.value.code, state(tmp_path)["global_step"]) == (130, 3)
    callback = StopOnSignal()
    callback._on_signal(signal.SIGTERM, None)
    callback._since -= 1
    with pytest.raises(SystemExit):
        callback._on_signal(signal.SIGTERM, None)


def test_in_another_thread_it_trains_without_handlers(tiny, tmp_path, handlers):
    thread = threading.Thread(target=train, args=(composed(*tiny, f"run_dir={tmp_path}"),))
    thread.start()
    thread.join()
    assert state(tmp_path)["global_step"] == 6


@pytest.mark.parametrize("limit", [["trainer.min_steps=1"], ["trainer.min_steps=20"], []])
def test_min_steps_delay_a_stop_and_nothing_else(limit, tiny, tmp_path, handlers):
    """Early stopping ends the run at the step that it asked for, or at the least one, which is validated and saved."""
    early = "{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss, patience: 1, min_delta: 100}"
    start(tmp_path, *tiny, *STEPS, "trainer.max_steps=200", f"+callbacks.early={early}", *limit)
    assert state(tmp_path)["global_step"] == (20 if "trainer.min_steps=20" in limit else 8)
    assert read_curve(tmp_path)[-1].step == state(tmp_path)["global_step"]
    assert state(tmp_path)["stopped_early"]


def test_saves_and_signals_go_on_before_min_steps(tiny, tmp_path, handlers):
    early = "{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss, patience: 1, min_delta: 100}"
    more = ["trainer.max_steps=200", "trainer.min_steps=100", f"+callbacks.early={early}"]
    with pytest.raises(Stopped) as stop:
        start(tmp_path, *tiny, *STEPS, *more, *signal_at(30))
    assert stop.value.step == state(tmp_path)["global_step"] == 31


def test_a_time_limit_is_not_early(tiny, tmp_path):
    start(tmp_path, *tiny, *STEPS, "trainer.max_steps=100000", "trainer.max_time={seconds: 1}", "trainer.min_steps=1")
    assert "stopped_early" not in state(tmp_path) or not state(tmp_path)["stopped_early"]
    assert state(tmp_path)["global_step"] < 100000


@pytest.mark.parametrize(("step", "when"), [(2, "on_train_batch_start"), (0, "on_fit_start")])
def test_handlers_are_put_back_after_an_error(step, when, tiny, tmp_path, handlers):
    """Also after one that comes before training starts: it is the error that is shown."""
    with pytest.raises(KeyError if step else UserError, match="a bug"):
        start(tmp_path, *tiny, f"+callbacks.harm={{_target_: faults.Raise, step: {step}, error: bug, when: {when}}}")


def poison(**options):
    return [f"+callbacks.harm.{key}={value}" for key, value in ({"_target_": "faults.Poison"} | options).items()]


def test_a_loss_that_is_no_number(tiny, tmp_path):
    with pytest.raises(NonFiniteError, match="the training loss is nan in step 5"):
        start(tmp_path, *tiny, *STEPS, *poison(step=4))
    assert finite(state(tmp_path), 3)


@pytest.mark.parametrize(
    ("step", "when", "message"),
    [
        (6, "on_train_batch_end", "the weights are not finite after step 6"),
        (8, "on_train_batch_end", "the validation loss is nan after step 8"),
        (12, "on_train_batch_end", "the validation loss is nan after step 12"),
        (12, "on_validation_batch_start", "the validation loss is nan after step 12"),
    ],
)
def test_weights_that_are_no_numbers_are_not_saved(step, when, message, tiny, tmp_path):
    """Nor are those whose loss was a number still: what was saved before stays."""
    with pytest.raises(NonFiniteError, match=message):
        start(tmp_path, *tiny, *STEPS, *poison(step=step, when=when))
    saved = (step - 1) // 3 * 3
    assert finite(state(tmp_path), saved)
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert finite(best, (step - 1) // 4 * 4)
    assert not list((tmp_path / "checkpoints").glob(".*"))


def finite(checkpoint, step):
    weights = [value for name, value in checkpoint["state_dict"].items() if name.startswith("net.")]
    return checkpoint["global_step"] == step and all(value.isfinite().all() for value in weights)

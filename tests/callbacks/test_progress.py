"""The speed of training, and the progress of a run on the terminal."""

import os
import time
from types import SimpleNamespace

import pytest
import torch
from faults import clock
from helpers import events, start
from lightning.pytorch import Trainer

from chargpt.callbacks import look
from chargpt.callbacks.progress import Throughput


@pytest.fixture
def slow(monkeypatch):
    """Overrides for a callback that takes time on a clock for tests."""
    monkeypatch.setattr(time, "perf_counter", clock)
    clock.sleep(1e6)  # before the start
    return lambda **times: f"+callbacks.slow={{_target_: faults.Slow, {str(times)[1:]}".replace("'", "")


def test_slow_steps_have_a_line_each_if_they_are_logged(tiny, slow, tmp_path, caplog):
    caplog.set_level("INFO")
    start(tmp_path, *tiny, slow(step=120), "trainer.val_check_interval=100")
    lines = [line.split(", ") for line in caplog.messages if line.startswith("step ")]
    assert [line[0] for line in lines] == ["step 2/6", "step 4/6", "step 6/6", "step 6/6"]
    assert lines[1][-1] == "0:04:00 left"


def test_validations_samples_and_saves_do_not_count_for_the_speed(tiny, slow, tmp_path, monkeypatch):
    calls = []

    def takes_long(owner, name):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **b: (real(*a, **b), calls.append(name), clock.sleep(100))[0])

    takes_long(look, "generate")
    takes_long(os, "fsync")
    takes_long(Trainer, "save_checkpoint")
    steps = ["trainer.max_steps=12", "trainer.val_check_interval=4", "callbacks.last_checkpoint.every_n_steps=3"]
    often = ["trainer.accumulate_grad_batches=3", "trainer.log_every_n_steps=5"]
    start(tmp_path, *tiny, *steps, *often, slow(batch=1.0, step=2.0, validation=100.0))
    assert {"generate", "fsync", "save_checkpoint"} == set(calls)
    values = {event.step: event.value for event in events(tmp_path).Scalars("chars_per_second")}
    assert values == dict.fromkeys((5, 10, 12), pytest.approx(3 * 4 * 16 / (3 + 2)))


def test_characters_of_all_devices_count(monkeypatch):
    monkeypatch.setattr(time, "perf_counter", clock)
    logged = {}
    trainer = SimpleNamespace(global_step=0, world_size=3, accumulate_grad_batches=2, log_every_n_steps=1, max_steps=9)
    module = SimpleNamespace(log=logged.__setitem__)
    callback = Throughput()
    callback.on_train_start(trainer, module)
    clock.sleep(4)
    trainer.global_step = 5
    callback.on_train_batch_end(trainer, module, None, [torch.zeros(4, 16)], 0)
    assert logged == {"chars_per_second": 3 * 2 * 5 * 4 * 16 / 4}

import os
import time
from types import SimpleNamespace

import pytest
import torch
from faults import clock
from helpers import events, start
from lightning.pytorch import Trainer

from chargpt.callbacks import samples
from chargpt.callbacks.throughput import Throughput

# A second for each batch and two for each step; 100 at each turn of a validation, in a text sample and in a save.
SLOW = [f"+callbacks.slow.{each}" for each in ("_target_=faults.Slow", "batch=1.0", "step=2.0", "validation=100.0")]
STEPS = ["trainer.max_steps=12", "trainer.val_check_interval=3", "callbacks.last_checkpoint.every_n_steps=4"]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("logged", [2, 5])
def test_throughput_is_that_of_training(accumulate, logged, tiny, tmp_path, monkeypatch):
    """Validations, text samples and saves, however long they take, do not count; batches and steps do."""
    monkeypatch.setattr(time, "perf_counter", clock)
    calls = []
    makes_slow(monkeypatch, samples, "generate", calls)
    makes_slow(monkeypatch, os, "fsync", calls)
    makes_slow(monkeypatch, Trainer, "save_checkpoint", calls)
    options = [f"trainer.accumulate_grad_batches={accumulate}", f"trainer.log_every_n_steps={logged}"]
    start(tmp_path, *tiny, *SLOW, *STEPS, *options)
    assert {"generate", "fsync", "save_checkpoint"} == set(calls)
    values = {event.step: event.value for event in events(tmp_path).Scalars("chars_per_second")}
    assert sorted(values) == list(range(logged, 13, logged))
    batch = 4 * 16  # characters
    assert list(values.values()) == pytest.approx([accumulate * batch / (accumulate + 2)] * len(values))


def makes_slow(monkeypatch, owner, name, calls):
    real = getattr(owner, name)

    def slow(*arguments, **options):
        result = real(*arguments, **options)
        calls.append(name)
        clock.sleep(100)
        return result

    monkeypatch.setattr(owner, name, slow)


def test_it_counts_the_steps_of_this_start(tiny, tmp_path, monkeypatch):
    """Steps between validations far from logged ones; the first value begins with the first step."""
    monkeypatch.setattr(time, "perf_counter", clock)
    clock.sleep(1e6)
    start(tmp_path, *tiny, *SLOW, "trainer.max_steps=5", "trainer.log_every_n_steps=4")
    found = {(event.step, round(event.value, 3)) for event in events(tmp_path).Scalars("chars_per_second")}
    assert found == {(4, round(64 / 3, 3))}


def test_characters_of_all_devices_count(monkeypatch):
    seconds = iter([0.0, 4.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(seconds))
    logged = {}
    trainer = SimpleNamespace(global_step=0, world_size=3, accumulate_grad_batches=2, log_every_n_steps=1)
    module = SimpleNamespace(log=logged.__setitem__)
    callback = Throughput()
    callback.on_train_start(trainer, module)
    trainer.global_step = 5
    callback.on_train_batch_end(trainer, module, None, [torch.zeros(4, 16)], 0)
    assert logged == {"chars_per_second": 3 * 2 * 5 * 4 * 16 / 4}

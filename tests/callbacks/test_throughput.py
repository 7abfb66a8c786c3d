"""The speed of training."""

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


@pytest.mark.parametrize(("accumulate", "logged"), [(1, 2), (1, 5), (3, 5)])
def test_validations_samples_and_saves_do_not_count(accumulate, logged, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(time, "perf_counter", clock)
    clock.sleep(1e6)  # before the start
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


def test_characters_of_all_devices_count(monkeypatch):
    monkeypatch.setattr(time, "perf_counter", clock)
    logged = {}
    trainer = SimpleNamespace(global_step=0, world_size=3, accumulate_grad_batches=2, log_every_n_steps=1)
    module = SimpleNamespace(log=logged.__setitem__)
    callback = Throughput()
    callback.on_train_start(trainer, module)
    clock.sleep(4)
    trainer.global_step = 5
    callback.on_train_batch_end(trainer, module, None, [torch.zeros(4, 16)], 0)
    assert logged == {"chars_per_second": 3 * 2 * 5 * 4 * 16 / 4}

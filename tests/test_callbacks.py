import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import composed

from chargpt.callbacks import Throughput
from train import train


def test_a_bar_on_a_terminal(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    train(composed(*tiny, f"run_dir={tmp_path}"))
    shown = capsys.readouterr().err
    assert "0/6 [00:00<?" in shown  # steps done and to do, time gone and left
    assert "6/6 [00:" in shown
    assert "loss " in shown
    assert "val loss " in shown
    assert "chars/s" in shown


def test_no_bar_elsewhere(tiny, tmp_path, capsys):
    train(composed(*tiny, f"run_dir={tmp_path}"))
    assert "6/6 [" not in capsys.readouterr().err


@pytest.mark.parametrize(("accumulate", "devices"), [(1, 1), (3, 1), (2, 4)])
def test_throughput_is_that_of_training(accumulate, devices, monkeypatch):
    """Two steps of 2 s each and a validation of 50 s between them: the validation does not count."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    logged = {}
    trainer = SimpleNamespace(
        global_step=0,
        log_every_n_steps=2,
        accumulate_grad_batches=accumulate,
        world_size=devices,
        sanity_checking=False,
    )
    module = SimpleNamespace(log=logged.__setitem__)
    throughput, batch = Throughput(), (torch.zeros(4, 8), None)
    throughput.on_train_start(trainer, module)
    for step in (1, 2):
        for n in range(accumulate):
            now[0] += 2 / accumulate
            trainer.global_step = step if n == accumulate - 1 else step - 1
            throughput.on_train_batch_end(trainer, module, None, batch, 0)
        throughput.on_validation_start(trainer, module)
        now[0] += 50
        throughput.on_validation_end(trainer, module)
    assert logged == {"chars_per_second": pytest.approx(2 * accumulate * devices * 32 / 4)}


def test_text_samples_leave_training_alone(tiny, tmp_path):
    """They draw random numbers of their own."""
    for name, length in (("short", 1), ("long", 30)):
        train(composed(*tiny, f"run_dir={tmp_path / name}", f"callbacks.text_samples.length={length}"))
    short, long = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("short", "long")
    )
    assert all(torch.equal(short[key], long[key]) for key in short)

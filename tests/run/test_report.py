"""The verdict on real and on made-up curves."""

import json
import math

import pytest
import torch
from helpers import ROOT, curves, interrupt, resume, signal_at, start

from chargpt import evaluate
from chargpt.history import Point, read_losses
from chargpt.run.report import verdict

FALLS = [1.6, 1.4, 1.3, 1.2, 1.1, 1.0, 0.9, 0.8]  # of a training loss


def points(losses, train=None, every=500):
    """A curve with these validation losses; its training loss falls."""
    train = FALLS if train is None else train
    return [Point(every * n, 10.0 * n, train[n - 1], loss, 1000.0) for n, loss in enumerate(losses, 1)]


@pytest.mark.parametrize("name", ["cpu", "speedrun", "speedrun-2000-steps", "record"])
def test_real_runs_were_still_falling(name):
    curve = read_losses(ROOT / "docs" / "results" / name)
    assert verdict(curve, curve[-1].step).startswith("Validation loss was still falling: a longer run")


NAN = [math.nan] * 8
UP = [1.6, 1.5, 1.5, 1.9, 2.5, 3.5, 3.6, 3.7]
OVERFITS = [1.9, 1.65, 1.55, 1.50, 1.52, 1.56, 1.62]


@pytest.mark.parametrize(
    ("losses", "train", "expected"),
    [
        ([], None, ""),
        ([1.9, 1.7], None, ""),
        ([1.9, 1.7, 1.6], None, "Validation loss was still falling: a longer run"),
        ([1.9, 1.7, 1.6], NAN, ""),  # before the first logged step
        ([1.9, 1.7, 1.75, 1.6, 1.5], None, "Validation loss was still falling"),
        (OVERFITS, None, "Overfitting since step 2,000: validation loss rose from 1.5000 to 1.6200 while"),
        ([1.9, 1.5, 3.0, 5.0], None, "Overfitting since step 1,000"),  # and no divergence
        (OVERFITS, UP, ""),  # it rose by less than a tenth
        ([1.9, 1.6, 1.5, 1.51, 1.505], None, "Levelled off"),
        ([1.9, 1.6, 1.502, 1.501, 1.5], None, "Levelled off: validation loss fell only from 1.5020 at step 1,500"),
        ([1.9, 1.6, 1.5, 1.8, 2.5], UP, "Diverged: validation loss rose from 1.5000 to 2.5000. A lower optimizer.lr"),
        ([5.0, 5.2, 5.8], [5.0, 5.3, 5.6], "Diverged: validation loss rose from 5.0000 to 5.8000"),
        ([4.9, 4.8, 4.7], None, "Validation loss was still falling"),  # a bigram begins there
        ([4.16, 4.15, 4.14], None, "Validation loss was still falling"),  # little, and as fast as before
        ([4.18, 4.19, 4.18], None, "Levelled off"),
        ([0.0, 0.0, 0.0], [0.0] * 3, "Levelled off"),
    ],
)
def test_made_up_runs(losses, train, expected):
    curve = points(losses, train)
    found = verdict(curve, 500 * len(losses))
    assert found.startswith(expected)
    assert bool(found) == bool(expected)


def test_a_run_that_ended_early():
    expected = "Validation loss was still falling, after 1,500 of 5,000 steps: it is worth going on"
    assert verdict(points([1.9, 1.7, 1.6]), 5000) == expected


# The test text

THREE = "data.split=[0.8,0.1,0.1]"


def evaluated(capsys, checkpoint):
    """The loss on the test text that `chargpt.evaluate` finds."""
    assert evaluate.main(["--device", "cpu", "--json", "--split", "test", "--ckpt", str(checkpoint)]) == 0
    return json.loads(capsys.readouterr().out)[0]["loss"]


def test_the_test_text_is_scored_once_at_the_end_with_the_best_weights(tiny, tmp_path, capsys, caplog):
    """Of a run that was interrupted, and whose weights become worse after step 3."""
    caplog.set_level("INFO")
    harm = "+callbacks.harm={_target_: faults.Worsen, step: 4}"
    interrupt(tmp_path, *tiny, THREE, harm, "trainer.max_steps=9", *signal_at(2))
    assert "test/loss" not in curves(tmp_path)
    resume(tmp_path, harm, "+callbacks.stop=null")
    [(_, loss)] = curves(tmp_path)["test/loss"]
    best = tmp_path / "checkpoints" / "best.ckpt"
    assert torch.load(best, weights_only=True)["global_step"] == 3
    assert evaluated(capsys, best) == pytest.approx(loss, rel=1e-5)
    bits = f"{loss / math.log(2):.4f} bits per character"
    assert f"Test loss {loss:.4f} ({bits}), with the weights in best.ckpt" in caplog.text


def test_without_a_best_checkpoint_the_last_weights_are_scored(tiny, tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    start(tmp_path, *tiny, THREE, "callbacks.best_checkpoint=null")
    [(_, loss)] = curves(tmp_path)["test/loss"]
    assert evaluated(capsys, tmp_path / "checkpoints" / "last.ckpt") == pytest.approx(loss, rel=1e-6)
    assert "with the weights in last.ckpt" in caplog.text

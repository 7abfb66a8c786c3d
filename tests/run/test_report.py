"""The verdict on real and on made-up curves."""

import math

import pytest
from helpers import ROOT, STEPS, start

from chargpt.history import Point, read_losses
from chargpt.run.report import verdict

FALLS = [1.6, 1.4, 1.3, 1.2, 1.1, 1.0, 0.9, 0.8]  # of a training loss


def points(losses, train=None, every=500):
    """A curve with these validation losses; its training loss falls."""
    train = FALLS if train is None else train
    return [Point(every * n, 10.0 * n, train[n - 1], loss, 1000.0) for n, loss in enumerate(losses, 1)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cpu", "still falling at the end, as a falling learning rate makes it: a new run"),
        ("cpu-1300-steps", None),  # two validations
        ("speedrun", "still falling at the end, as"),
        ("speedrun-2000-steps", "still falling at the end, as"),
        ("record", "still falling at the end, as"),
    ],
)
def test_real_runs(name, expected):
    curve = read_losses(ROOT / "docs" / "results" / name)
    assert len(curve) > 1
    found = verdict(curve, curve[-1].step, 65, constant=False)
    assert expected in found if expected else found == ""


NAN = [math.nan] * 8
UP = [1.6, 1.5, 1.5, 1.9, 2.5, 3.5, 3.6, 3.7]
OVERFITS = [1.9, 1.65, 1.55, 1.50, 1.52, 1.56, 1.62]


@pytest.mark.parametrize(
    ("losses", "train", "expected"),
    [
        ([], None, ""),
        ([1.9, 1.7], None, ""),
        ([1.9, 1.7, 1.6], None, "Validation loss was still falling at the end: with a larger trainer.max_steps"),
        ([1.9, 1.7, 1.6], NAN, "Validation loss was still falling at the end"),
        ([1.9, 1.7, 1.75, 1.6, 1.5], None, "Validation loss was still falling at the end"),
        (OVERFITS, None, "Overfitting since step 2,000: validation loss rose from 1.5000 to 1.6200 while"),
        ([1.9, 1.5, 3.0, 5.0], None, "Overfitting since step 1,000"),  # worse than guessing, and still no divergence
        (OVERFITS, NAN, ""),  # it may be that, or not
        (OVERFITS, UP, ""),  # it rose by less than a tenth
        ([1.9, 1.6, 1.5, 1.51, 1.505], None, "Levelled off: the lowest validation loss is 1.5000"),
        (
            [1.9, 1.6, 1.502, 1.501, 1.5],
            None,
            "Levelled off: the lowest validation loss is 1.5000, and was 1.5020 at step",
        ),
        ([1.9, 1.6, 1.7, 1.59, 1.66], UP, "Levelled off"),  # it went up and down before
        ([1.9, 1.6, 1.5, 1.8, 2.5], UP, "Diverged: validation loss rose from 1.5000 to 2.5000. A lower optimizer.lr"),
        ([5.0, 5.2, 5.1], [5.0, 5.3, 5.0], "Diverged: validation loss is 5.1000, above that of guessing, 4.1744"),
        ([4.9, 4.8, 4.7], NAN, "Validation loss was still falling at the end"),  # a bigram begins there
        ([4.16, 4.15, 4.14], None, "Validation loss was still falling at the end"),  # little, and as fast as before
        ([4.18, 4.19, 4.18], NAN, "Levelled off"),
        ([0.0, 0.0, 0.0], [0.0] * 3, "Levelled off"),
    ],
)
def test_made_up_runs(losses, train, expected):
    curve = points(losses, train)
    found = verdict(curve, 500 * len(losses), 65)
    assert found.startswith(expected)
    assert bool(found) == bool(expected)


def test_a_run_that_ended_early():
    curve = points([1.9, 1.7, 1.6])
    for constant in (True, False):
        found = verdict(curve, 5000, 65, constant=constant)
        assert found == "Validation loss was still falling, after 1,500 of 5,000 steps: it is worth going on"


def test_a_run_ends_with_it(tiny, tmp_path, caplog):
    caplog.set_level("INFO")
    start(tmp_path, *tiny, *STEPS)
    expected = verdict(read_losses(tmp_path), 12, 10)
    assert expected
    assert f" s\n{expected}\nCheckpoint:" in caplog.text

"""The table and the picture of a run's losses."""

import math
import time

import pytest
from faults import clock
from helpers import STEPS, resume, signal_at, start, state

from chargpt.callbacks import losses
from chargpt.callbacks.losses import Losses, draw
from chargpt.errors import NonFiniteError, Stopped
from chargpt.history import LOSSES, PICTURE, SAMPLES, Point, add_losses, read_losses
from chargpt.pictures import png


def test_the_picture_shows_both_losses_and_the_lowest():
    values = [(3.0, 3.1), (2.0, 2.2), (math.nan, 2.4)]
    panel = draw([Point(100 * n, 1.0, *each, 1.0) for n, each in enumerate(values, 1)]).axes[0]
    train, val, best = panel.lines
    assert list(val.get_xdata()) == [100, 200, 300]
    assert list(val.get_ydata()) == [3.1, 2.2, 2.4]
    assert list(train.get_ydata())[:2] == [3.0, 2.0]
    assert (list(best.get_xdata()), best.get_label()) == ([200], "lowest: 2.2000 at step 200")


@pytest.mark.parametrize(("many", "loss"), [(1, 9e14), (5_000, 0.0)])
def test_odd_curves_can_be_drawn(many, loss):
    assert png(draw([Point(n, 1.0, math.nan, loss, 1.0) for n in range(many)])).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("harm", "error", "steps"),
    [
        (signal_at(11), Stopped, [4, 8, 12]),
        (["+callbacks.harm={_target_: faults.Poison, step: 9}"], NonFiniteError, [4, 8]),
    ],
)
def test_however_a_run_ends_its_picture_has_all_points(harm, error, steps, tiny, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(losses, "draw", lambda points: drawn.append([each.step for each in points]) or draw(points))
    with pytest.raises(error):
        start(tmp_path, *tiny, *STEPS, *harm)
    assert drawn[-1] == steps
    assert (tmp_path / PICTURE).read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob(".*.tmp"))


def test_without_losses_there_is_no_picture(tiny, tmp_path):
    start(tmp_path, *tiny, "trainer.limit_val_batches=0")
    assert not (tmp_path / PICTURE).exists()


def test_files_that_cannot_be_written_end_no_run(tiny, tmp_path, caplog):
    """Such as one that another program on Windows has open; here, folders are in the way."""
    for name in (LOSSES, PICTURE, SAMPLES):
        (tmp_path / name / "in the way").mkdir(parents=True)
    start(tmp_path / "run", *tiny, f"callbacks.text_samples.dirpath={tmp_path}", f"callbacks.losses.dirpath={tmp_path}")
    assert state(tmp_path / "run")["global_step"] == 6
    (tmp_path / LOSSES / "in the way").rmdir()
    (tmp_path / LOSSES).rmdir()
    add_losses(tmp_path, Point(3, 1.0, 2.0, 2.0, 1.0))
    Losses(str(tmp_path)).on_fit_end(None, None)
    for name in (LOSSES, PICTURE, SAMPLES):
        assert f"cannot write {name}" in caplog.text


def test_seconds_count_all_training(tiny, tmp_path, monkeypatch):
    """Also between the last row and an interruption, but not the time until the run resumes."""
    monkeypatch.setattr(time, "perf_counter", clock)
    steps = [*STEPS, "+callbacks.slow={_target_: faults.Slow, step: 10}"]
    with pytest.raises(Stopped):
        start(tmp_path, *tiny, *steps, *signal_at(6))
    clock.sleep(1000)
    resume(tmp_path, steps[-1], "+callbacks.stop=null")
    assert [point.seconds for point in read_losses(tmp_path)] == [40, 80, 120]

"""The table and the picture of a run's losses."""

import math
import time

import pytest
from faults import clock
from helpers import STEPS, composed, resume, signal_at, start, state
from omegaconf import OmegaConf

from chargpt.callbacks import losses
from chargpt.callbacks.losses import MOST_POINTS, draw
from chargpt.errors import NonFiniteError, Stopped
from chargpt.history import LOSSES, PICTURE, SAMPLES, Point, read_losses
from train import train

POISON = "+callbacks.harm={_target_: faults.Poison, step: 9}"
FIRST = "+callbacks.aaa={_target_: chargpt.callbacks.losses.LossPicture, dirpath: '${run_dir}'}"


def test_the_picture_shows_both_losses_and_the_lowest():
    values = [(3.0, 3.1), (2.0, 2.2), (math.nan, 2.4)]
    panel = draw([Point(100 * n, 1.0, *each, 1.0) for n, each in enumerate(values, 1)]).axes[0]
    train, val, best = panel.lines
    assert list(val.get_xdata()) == [100, 200, 300]
    assert list(val.get_ydata()) == [3.1, 2.2, 2.4]
    assert list(train.get_ydata())[:2] == [3.0, 2.0]
    assert (list(best.get_xdata()), best.get_label()) == ([200], "lowest: 2.2000 at step 200")


@pytest.mark.parametrize("loss", [0.0, 9e14])
@pytest.mark.parametrize("many", [1, MOST_POINTS + 1])
def test_odd_curves_can_be_drawn(loss, many, tmp_path):
    figure = draw([Point(n, 1.0, math.nan, loss, 1.0) for n in range(many)])
    figure.savefig(tmp_path / "loss.png")
    assert len(figure.axes[0].lines[1].get_xdata()) == min(many, MOST_POINTS)


@pytest.mark.parametrize(
    ("overrides", "error", "steps"),
    [
        ([FIRST], None, [4, 8, 12]),  # also as the first of the callbacks
        (signal_at(9), Stopped, [4, 8]),
        (signal_at(11), Stopped, [4, 8, 12]),
        ([POISON], NonFiniteError, [4, 8]),
    ],
)
def test_however_a_run_ends_its_picture_has_all_points(overrides, error, steps, tiny, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(losses, "draw", lambda points: drawn.append([each.step for each in points]) or draw(points))
    if error is None:
        start(tmp_path, *tiny, *STEPS, *overrides)
    else:
        with pytest.raises(error):
            start(tmp_path, *tiny, *STEPS, *overrides)
    assert all(each == steps for each in drawn)
    assert (tmp_path / PICTURE).read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize(
    "override", ["callbacks.loss_picture=null", "callbacks.losses=null", "trainer.limit_val_batches=0"]
)
def test_no_picture_without_the_callback_or_without_losses(override, tiny, tmp_path):
    start(tmp_path, *tiny, override)
    assert not (tmp_path / PICTURE).exists()


@pytest.mark.parametrize("names", [[PICTURE], [LOSSES, SAMPLES]])
def test_files_that_cannot_be_written_end_no_run(names, tiny, tmp_path, caplog):
    """Such as one that another program on Windows has open; here, folders are in the way."""
    for name in names:
        (tmp_path / name / "in the way").mkdir(parents=True)
    (tmp_path / ".hydra").mkdir()
    cfg = composed(*tiny, f"run_dir={tmp_path}")
    (tmp_path / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(cfg), encoding="utf-8")  # it began here
    train(cfg)
    assert state(tmp_path)["global_step"] == 6
    for name in names:
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

"""The table and the picture of a run's losses."""

import math
import time

import pytest
from faults import clock
from helpers import STEPS, composed, resume, signal_at, start, state
from omegaconf import OmegaConf

from chargpt.callbacks import losses as room
from chargpt.callbacks.losses import MOST_POINTS, draw
from chargpt.errors import NonFiniteError, Stopped
from chargpt.history import Point, read_losses
from train import train


@pytest.fixture
def drawn(monkeypatch):
    """The curves that were drawn, as steps."""
    curves = []
    monkeypatch.setattr(room, "draw", lambda points: curves.append([point.step for point in points]) or draw(points))
    return curves


def test_what_it_shows():
    losses = [(3.0, 3.1), (2.0, 2.2), (math.nan, 2.4)]
    panel = draw([Point(100 * n, 1.0, *loss, 1.0) for n, loss in enumerate(losses, 1)]).axes[0]
    train, val, best = panel.lines
    assert list(val.get_xdata()) == [100, 200, 300]
    assert list(val.get_ydata()) == [3.1, 2.2, 2.4]
    assert list(train.get_ydata())[:2] == [3.0, 2.0]
    assert (list(best.get_xdata()), best.get_label()) == ([200], "lowest: 2.2000 at step 200")


@pytest.mark.parametrize("loss", [0.0, 1.0, 9e14])
def test_odd_curves(loss, tmp_path):
    """One point; the same again and again; more than can be seen; numbers that nobody has."""
    for many in (1, 3, MOST_POINTS + 1):
        figure = draw([Point(n, 1.0, math.nan, loss, 1.0) for n in range(many)])
        figure.savefig(tmp_path / "loss.png")
        assert len(figure.axes[0].lines[1].get_xdata()) <= MOST_POINTS


def test_it_has_all_points_whatever_the_order(tiny, tmp_path, drawn):
    first = "+callbacks={aaa: {_target_: chargpt.callbacks.losses.LossPicture, dirpath: '${run_dir}'}}"
    start(tmp_path, *tiny, *STEPS, first.replace("+callbacks={aaa: ", "+callbacks.aaa=").removesuffix("}"))
    assert drawn == [[4, 8, 12]] * 2
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_run_that_is_stopped_has_it_too(tiny, tmp_path, drawn):
    with pytest.raises(Stopped):
        start(tmp_path / "signal", *tiny, *STEPS, *signal_at(9))
    with pytest.raises(Stopped):
        start(tmp_path / "last", *tiny, *STEPS, *signal_at(11))
    poison = "+callbacks.harm={_target_: faults.Poison, step: 9}"
    with pytest.raises(NonFiniteError):
        start(tmp_path / "nan", *tiny, *STEPS, poison)
    assert drawn == [[4, 8], [4, 8, 12], [4, 8]]
    assert len(list(tmp_path.glob("*/loss.png"))) == 3


@pytest.mark.parametrize(
    "overrides", [["callbacks.loss_picture=null"], ["callbacks.losses=null"], ["trainer.limit_val_batches=0"]]
)
def test_none(overrides, tiny, tmp_path):
    start(tmp_path, *tiny, *overrides)
    assert not (tmp_path / "loss.png").exists()


@pytest.mark.parametrize("name", ["loss.png", "losses.csv", "samples.jsonl"])
def test_a_file_that_cannot_be_written_ends_no_run(name, tiny, tmp_path, caplog):
    """Open in another program on Windows, say; here something else is in its place."""
    (tmp_path / name / "in the way").mkdir(parents=True)
    (tmp_path / ".hydra").mkdir()
    cfg = composed(*tiny, f"run_dir={tmp_path}")
    (tmp_path / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(cfg), encoding="utf-8")  # it began here
    train(cfg)
    assert state(tmp_path)["global_step"] == 6
    assert f"cannot write {name}" in caplog.text


def test_seconds_count_all_training(tiny, tmp_path, monkeypatch):
    """Also what was trained between the last row and an interruption, and nothing of the time between."""
    monkeypatch.setattr(time, "perf_counter", clock)
    steps = [*STEPS, "+callbacks.slow={_target_: faults.Slow, step: 10}"]
    with pytest.raises(Stopped):
        start(tmp_path, *tiny, *steps, *signal_at(6))
    clock.sleep(1000)
    resume(tmp_path, steps[-1], "+callbacks.stop=null")
    assert [point.seconds for point in read_losses(tmp_path)] == [40, 80, 120]

import math

import pytest
from helpers import STEPS, signal_at, start

from chargpt.curve import Point
from chargpt.errors import NonFiniteError, Stopped
from chargpt.run.callbacks import loss_picture
from chargpt.run.callbacks.loss_picture import MOST_POINTS, draw


@pytest.fixture
def drawn(monkeypatch):
    """The curves that were drawn, as steps."""
    curves = []
    monkeypatch.setattr(
        loss_picture, "draw", lambda points: curves.append([point.step for point in points]) or draw(points)
    )
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
    first = "+callbacks={aaa: {_target_: chargpt.run.callbacks.loss_picture.LossPicture, dirpath: '${run_dir}'}}"
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


def test_a_full_disk(tiny, tmp_path, monkeypatch):
    """All else is saved by then; it does not hide why a run was stopped."""

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loss_picture, "write_whole", full)
    with pytest.raises(OSError, match="No space left"):
        start(tmp_path / "end", *tiny)
    assert (tmp_path / "end" / "checkpoints" / "last.ckpt").exists()
    with pytest.raises(Stopped):
        start(tmp_path / "stopped", *tiny, *signal_at(4))

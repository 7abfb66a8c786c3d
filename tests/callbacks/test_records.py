"""What a run records: its losses in its folder, and its configuration and HParams in TensorBoard."""

import math
import shlex
import time

import pytest
from faults import clock
from helpers import STEPS, events, interrupt, resume, run_script, signal_at, start, state, texts
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from chargpt.callbacks import look, records
from chargpt.callbacks.records import draw
from chargpt.errors import NonFiniteError, Stopped
from chargpt.files import write_figure
from chargpt.history import LOSSES, PICTURE, SAMPLES, Point, Sample, add_losses, add_sample, read_losses, read_samples


def test_the_picture_shows_both_losses_and_the_lowest():
    values = [(3.0, 3.1), (2.0, 2.2), (math.nan, 2.4)]
    panel = draw([Point(100 * n, 1.0, *each, 1.0) for n, each in enumerate(values, 1)]).axes[0]
    train, val, best = panel.lines
    assert list(val.get_xdata()) == [100, 200, 300]
    assert list(val.get_ydata()) == [3.1, 2.2, 2.4]
    assert list(train.get_ydata())[:2] == [3.0, 2.0]
    assert (list(best.get_xdata()), best.get_label()) == ([200], "lowest: 2.2000 at step 200")


@pytest.mark.parametrize(("many", "loss"), [(1, 9e14), (5_000, 0.0)])
def test_odd_curves_can_be_drawn(many, loss, tmp_path):
    write_figure(tmp_path / "loss.png", draw([Point(n, 1.0, math.nan, loss, 1.0) for n in range(many)]))


@pytest.mark.parametrize(
    ("harm", "error", "steps"),
    [
        (signal_at(11), Stopped, [4, 8, 12]),
        (["+callbacks.harm={_target_: faults.Poison, step: 9}"], NonFiniteError, [4, 8]),
    ],
)
def test_however_a_run_ends_its_picture_has_all_points(harm, error, steps, tiny, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(records, "draw", lambda points: drawn.append([each.step for each in points]) or draw(points))
    with pytest.raises(error):
        start(tmp_path, *tiny, *STEPS, *harm)
    assert drawn[-1] == steps
    assert (tmp_path / PICTURE).read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob(".*.tmp"))


def test_without_losses_there_is_no_picture(tiny, tmp_path):
    start(tmp_path, *tiny, "trainer.limit_val_batches=0")
    assert not (tmp_path / PICTURE).exists()
    assert state(tmp_path)["global_step"] == 6


def test_files_that_cannot_be_written_end_no_run(tiny, tmp_path, monkeypatch, caplog):
    """Such as one that another program on Windows has open."""

    def busy(*_):
        raise PermissionError(13, "in use")

    monkeypatch.setattr(records, "add_losses", lambda run, point: busy() if point.step == 6 else add_losses(run, point))
    monkeypatch.setattr(records, "write_figure", busy)
    monkeypatch.setattr(look, "add_sample", busy)
    start(tmp_path, *tiny)
    assert [point.step for point in read_losses(tmp_path)] == [3]
    for name in (LOSSES, PICTURE, SAMPLES):
        assert f"cannot write {name}: in use" in caplog.text


def test_seconds_count_all_training(tiny, tmp_path, monkeypatch):
    """Also between the last row and an interruption, but not the time until the run resumes."""
    monkeypatch.setattr(time, "perf_counter", clock)
    steps = [*STEPS, "+callbacks.slow={_target_: faults.Slow, step: 10}"]
    interrupt(tmp_path, *tiny, *steps, *signal_at(6))
    clock.sleep(1000)
    resume(tmp_path, steps[-1], "+callbacks.stop=null")
    assert [point.seconds for point in read_losses(tmp_path)] == [40, 80, 120]


def test_the_samples_of_a_resumed_run_without_a_logger_are_those_of_an_uninterrupted_one(tiny_run, tiny, tmp_path):
    interrupt(tmp_path, *tiny, *signal_at(3), "trainer.logger=false")
    add_sample(tmp_path, Sample(5, "written after the last save, before the run was killed"))
    resume(tmp_path, "+callbacks.stop=null")
    assert [sample.step for sample in read_samples(tiny_run)] == [3, 6]
    assert read_samples(tmp_path) == read_samples(tiny_run)


def hparams(folder):
    data = events(folder).summary_metadata["_hparams_/session_start_info"].plugin_data.content
    return dict(HParamsPluginData.FromString(data).session_start_info.hparams)


def test_a_run_has_its_configuration_and_its_hparams(tiny_run, text_file):
    [(step, config)] = texts(tiny_run, "config")
    assert step == 0
    assert config.startswith(f"    # trained on {text_file}\n")
    assert "    seed: 1337\n" in config
    found = hparams(tiny_run)
    assert (found["model/n_embd"].number_value, found["precision"].string_value) == (16, "32-true")
    data = events(tiny_run).summary_metadata["_hparams_/experiment"].plugin_data.content
    metrics = HParamsPluginData.FromString(data).experiment.metric_infos
    assert [metric.name.tag for metric in metrics] == ["val/best_loss"]


def test_tensorboard_as_the_second_logger_gets_everything_also_when_resumed(tiny_run, tiny, tmp_path):
    """By the printed command, with an option of the user's own."""
    (tmp_path / "my" / "experiment").mkdir(parents=True)
    (tmp_path / "my" / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 5\n")
    options = "{_target_: lightning.pytorch.loggers.%s, save_dir: '${run_dir}', name: '%s', version: ''}"
    loggers = f"trainer.logger=[{options % ('CSVLogger', 'csv')}, {options % ('TensorBoardLogger', '')}]"
    own = ["--config-dir", f"{tmp_path}/my", "experiment=mine"]
    done = run_script("train.py", *own, *tiny, loggers, *signal_at(4), "hydra.run.dir=run", status=143, cwd=tmp_path)
    command = shlex.split(done.stderr.partition("to resume: ")[2])
    assert command[2:7] == [*own[:2], "resume=run", own[2], loggers]
    run_script("train.py", *command[2:7], "+callbacks.stop=null", cwd=tmp_path)
    run = tmp_path / "run"
    first, second = events(tiny_run).Tags(), events(run).Tags()
    for kind in ("scalars", "images", "tensors"):
        assert set(first[kind]) == set(second[kind])
    assert hparams(run).keys() == hparams(tiny_run).keys()
    assert (run / "csv" / "metrics.csv").is_file()
    assert [step for step, _ in texts(run, "sample")] == [3, 6]
    assert [step for step, _ in texts(run, "config")] == [0, 5]

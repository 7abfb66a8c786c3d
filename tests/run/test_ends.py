"""However a run ends, it can resume, and ends as if it had not been interrupted."""

import csv
import os
import shutil
import signal
import time

import pytest
import torch
from helpers import STEPS, assert_same, curves, launch, resume, run_fresh, run_script, signal_at, start, state
from lightning.pytorch import Callback

from chargpt.errors import Stopped, UserError
from chargpt.run.folder import CHECKPOINTS

QUIET = [*STEPS, "callbacks.text_samples=null", "model.dropout=0.2"]


def training_of(folder):
    """All that training left, but how it was scored: a run that is extended was scored once more."""
    kept = state(folder)
    kept["state_dict"].pop("best_val_loss.min_value")
    tags = ("train/loss", "train/grad_norm", "lr")
    return [kept[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "random_states", "global_step")], {
        tag: values for tag, values in curves(folder).items() if tag in tags
    }


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["trainer.limit_train_batches=5"],
        ["trainer.limit_train_batches=5", "trainer.accumulate_grad_batches=2"],
        ["trainer.accumulate_grad_batches=3"],
        ["trainer.precision=64-true"],
        ["data.num_workers=2"],
    ],
    ids=" ".join,
)
def test_extended_is_bitwise_the_longer_run(overrides, tiny, tmp_path):
    """From an end that is no multiple of the validation interval, and after an interruption."""
    every = [*tiny, *QUIET, "trainer.val_check_interval=5", *overrides]
    with pytest.raises(Stopped):
        start(tmp_path / "short", *every, *signal_at(3))
    resume(tmp_path / "short", "+callbacks.stop=null")
    resume(tmp_path / "short", "+callbacks.stop=null", "trainer.max_steps=17")
    start(tmp_path / "long", *every, "trainer.max_steps=17")
    assert_same(training_of(tmp_path / "long"), training_of(tmp_path / "short"))


def test_a_schedule_that_is_extended_jumps(tiny, tmp_path, caplog):
    caplog.set_level("INFO")
    start(tmp_path, *tiny, *QUIET, "optimizer.schedule=cosine")
    resume(tmp_path, "trainer.max_steps=24")
    messages = [record.message for record in caplog.records if "learning rate" in record.message]
    assert messages == ["The learning rate jumps from 3e-05 to 0.000156: its cosine schedule is now that of 24 steps"]
    rates = dict(curves(tmp_path)["lr"])
    assert rates[13] == pytest.approx(1.56e-4, rel=0.01)


def test_a_change_that_does_not_work_is_not_kept(tiny, tmp_path):
    start(tmp_path, *tiny, *QUIET)
    before = (tmp_path / ".hydra" / "config.yaml").read_bytes()
    harm = "+callbacks.harm={_target_: faults.Raise, step: 12, error: bug, when: on_train_start}"
    with pytest.raises(UserError, match="the run cannot begin: KeyError: 'a bug'"):
        resume(tmp_path, "trainer.max_steps=14", harm)
    assert (tmp_path / ".hydra" / "config.yaml").read_bytes() == before
    resume(tmp_path, "trainer.max_steps=14")
    assert (tmp_path / ".hydra" / "config.yaml").read_bytes() != before


def test_another_number_of_devices_is_logged(tiny, tmp_path, caplog):
    start(tmp_path, *tiny, *QUIET)
    kept = state(tmp_path)
    kept["random_states"] = [{"cpu": torch.get_rng_state()} for _ in range(2)]
    torch.save(kept, tmp_path / "checkpoints" / "last.ckpt")
    resume(tmp_path, "trainer.max_steps=14")
    assert "This run had 2 devices and resumes with 1: from here on" in caplog.text


# Limits of time, early stopping, a callback that stops


class Stop(Callback):
    """Asks the run to stop after a batch, or after the validation that follows it."""

    def __init__(self, batch, when="on_train_batch_end"):
        self.batch = batch
        setattr(self, when, self.stop)

    def stop(self, trainer, *_):
        if trainer.fit_loop.total_batch_idx + 1 == self.batch:
            trainer.should_stop = True


EARLY = "{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss, patience: 1, min_delta: 100}"


@pytest.mark.parametrize(
    ("stop", "again"),
    [
        (["+callbacks.mine={_target_: test_ends.Stop, batch: 7}"], ["+callbacks.mine=null"]),
        ([f"+callbacks.early={EARLY}"], ["+callbacks.early=null"]),
        (["trainer.max_time={seconds: 2}"], ["trainer.max_time=null"]),
    ],
    ids=["callback", "early", "time"],
)
def test_what_stops_a_run_leaves_its_last_state(stop, again, tiny, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    most = "trainer.max_steps=100000" if "time" in stop[0] else "trainer.max_steps=12"
    start(tmp_path / "run", *tiny, *QUIET, *stop, most, "trainer.val_check_interval=3")
    reached = state(tmp_path / "run")["global_step"]
    assert reached == max(step for step, _ in curves(tmp_path / "run")["train/loss"])
    assert reached < int(most.partition("=")[2])
    assert f"To resume:   python train.py resume={tmp_path / 'run'}" in caplog.text
    resume(tmp_path / "run", *again, f"trainer.max_steps={reached + 3}")
    start(tmp_path / "whole", *tiny, *QUIET, f"trainer.max_steps={reached + 3}", "trainer.val_check_interval=3")
    assert_same(training_of(tmp_path / "whole"), training_of(tmp_path / "run"))


@pytest.mark.parametrize(
    "stop",
    [
        ["+callbacks.mine={_target_: test_ends.Stop, batch: 7}"],
        # an epoch of 5 batches has 3 steps, so that batch 6, which is validated, is the first half of step 4
        [
            "+callbacks.mine={_target_: test_ends.Stop, batch: 6, when: on_validation_end}",
            "trainer.limit_train_batches=5",
            "trainer.val_check_interval=3",
        ],
    ],
    ids=["batch", "validation"],
)
def test_a_stop_between_two_batches_of_a_step_waits_for_its_end(stop, tiny, tmp_path, monkeypatch):
    """As that of a time limit. Half a step could not be saved."""
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    halves = [*tiny, *QUIET, "trainer.accumulate_grad_batches=2", "callbacks.last_checkpoint.every_n_steps=100"]
    start(tmp_path / "run", *halves, *stop)
    assert state(tmp_path / "run")["global_step"] == 4
    resume(tmp_path / "run", "+callbacks.mine=null")
    start(tmp_path / "whole", *halves, *stop[1:])
    assert_same(training_of(tmp_path / "whole"), training_of(tmp_path / "run"))


def test_a_time_limit_is_one_of_each_start(tiny, tmp_path):
    limit = ["trainer.max_time={seconds: 1}", "trainer.max_steps=100000"]
    start(tmp_path, *tiny, *QUIET, *limit)
    reached = state(tmp_path)["global_step"]
    resume(tmp_path, *limit)
    assert state(tmp_path)["global_step"] > reached + 5


# Loggers


@pytest.mark.parametrize("value", ["true", "null"])
def test_lightnings_own_logger_stays_in_the_folder(value, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start(tmp_path / "run", *tiny, f"trainer.logger={value}", "trainer.default_root_dir=null")
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


CSV = ["trainer.logger={_target_: lightning.pytorch.loggers.CSVLogger, save_dir: '${run_dir}', name: csv, version: ''}"]


def rows(folder):
    with (folder / "csv" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [{key: value for key, value in row.items() if key != "chars_per_second"} for row in csv.DictReader(file)]


def test_a_csv_file_continues(tiny, tmp_path):
    """The rows after the saved step are made again."""
    start(tmp_path / "whole", *tiny, *QUIET, *CSV)
    with pytest.raises(Stopped):
        start(tmp_path / "often", *tiny, *QUIET, *CSV, *signal_at(7))
    shutil.copy(tmp_path / "often" / "checkpoints" / "previous.ckpt", tmp_path / "often" / "checkpoints" / "last.ckpt")
    resume(tmp_path / "often", *CSV, "+callbacks.stop=null")
    assert rows(tmp_path / "often") == rows(tmp_path / "whole")


def test_a_killed_run_has_its_curves_up_to_the_saved_step(tiny, tmp_path):
    kill = [
        f"+callbacks.stop.{key}" for key in ("_target_=faults.SignalAt", "steps=[11]", f"signum={int(signal.SIGKILL)}")
    ]
    harm = {"env": {"PYTHONPATH": os.path.dirname(os.path.dirname(__file__))}}
    done = run_fresh("train.py", *tiny, *QUIET, *kill, f"hydra.run.dir={tmp_path}/run", **harm)
    assert done.returncode == -signal.SIGKILL
    assert [step for step, _ in curves(tmp_path / "run")["train/loss"]][:9] == list(range(1, 10))


# Signals, kills, locks: real processes


@pytest.fixture
def long(tiny, tmp_path):
    """A command line that trains for long in a fixed folder."""
    steps = ["trainer.max_steps=1000000", "callbacks.last_checkpoint.every_n_steps=10"]
    return [*tiny, *steps, f"hydra.run.dir={tmp_path}/run"]


def wait_for(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it did not happen")


def saved(folder):
    return lambda: (folder / CHECKPOINTS[1]).exists()


@pytest.mark.processes
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_to_the_whole_group(signum, status, long, tmp_path):
    """As `timeout`, SLURM and a closed terminal send it: loader workers have it, too."""
    run = launch(*long, "data.num_workers=2", start_new_session=True)
    wait_for(saved(tmp_path / "run"))
    os.killpg(run.pid, signum)
    printed = run.communicate(timeout=60)[1]
    assert run.returncode == status, printed
    assert f"To resume: python train.py resume={tmp_path}/run" in printed
    assert "Traceback" not in printed
    assert "error" not in printed


@pytest.mark.processes
def test_a_run_killed_before_its_first_save_begins_again(tiny, tmp_path):
    """By the same command; `resume=` says so."""
    line = [*tiny, f"hydra.run.dir={tmp_path}/run", "callbacks.last_checkpoint.every_n_steps=1000000"]
    run = launch(*line, "trainer.max_steps=1000000")
    wait_for((tmp_path / "run" / "checkpoints" / "best.ckpt").exists)
    run.kill()
    run.communicate()
    done = run_script("train.py", f"resume={tmp_path}/run")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "ended before its first save" in done.stderr
    other = run_script("train.py", *line)
    assert other.returncode == 2
    assert "would be lost" in other.stderr
    run = launch(*line, "trainer.max_steps=1000000")
    wait_for(lambda: "step 30" in (tmp_path / "run" / "train.log").read_text(encoding="utf-8").rpartition("Model:")[2])
    run.terminate()
    assert run.communicate()[1].count("Traceback") == 0
    assert run.returncode == 143
    steps = [step for step, _ in curves(tmp_path / "run")["train/loss"]]
    assert steps == sorted(set(steps))


@pytest.mark.processes
def test_one_process_for_a_run(long, tmp_path):
    """Beside a run that lives: resume, resume=auto, the same start, resume=allow."""
    (tmp_path / "outputs").mkdir()
    long = [each.replace(f"{tmp_path}/run", f"{tmp_path}/outputs/run") for each in long]
    run = launch(*long)
    wait_for(saved(tmp_path / "outputs" / "run"))
    folder = f"{tmp_path}/outputs/run"
    config = (tmp_path / "outputs" / "run" / ".hydra" / "config.yaml").read_bytes()
    for line in ([f"resume={folder}"], ["resume=auto"], [f"hydra.run.dir={folder}"], [*long, "resume=allow"]):
        done = run_script("train.py", *line, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert "error: another process is at work in " in done.stderr
        assert run.poll() is None
    run.terminate()
    run.communicate()
    assert (tmp_path / "outputs" / "run" / ".hydra" / "config.yaml").read_bytes() == config


@pytest.mark.processes
def test_one_command_line_for_every_start(long, tmp_path):
    """As a scheduler repeats it."""
    steps, last = [0], tmp_path / "run" / CHECKPOINTS[0]
    for _ in range(3):
        run = launch(*long, "resume=allow", "seed=1")
        wait_for(lambda: last.exists() and state(tmp_path / "run")["global_step"] > steps[-1])
        run.terminate()
        assert "Traceback" not in run.communicate()[1]
        assert run.returncode == 143
        steps.append(state(tmp_path / "run")["global_step"])
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("name", ["a b", "a=1,b=2", "back\\slash", "$HOME", "it's", "道"])
def test_a_copy_of_another_name_resumes(name, tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / name)
    done = run_script("train.py", f"resume={tmp_path / name}", "trainer.max_steps=8")
    assert done.returncode == 0, done.stderr
    assert state(tmp_path / name)["global_step"] == 8


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.max_epochs=3"], "trainer.max_epochs counts epochs"),
        (["trainer.overfit_batches=2"], "trainer.overfit_batches counts epochs"),
        (["trainer.check_val_every_n_epoch=2"], "trainer.check_val_every_n_epoch counts epochs"),
        (
            ["+callbacks.x={_target_: lightning.pytorch.callbacks.GradientAccumulationScheduler, scheduling: {}}"],
            "callbacks.x",
        ),
    ],
)
def test_what_counts_in_epochs_is_refused(overrides, message, tiny, tmp_path):
    with pytest.raises(UserError, match=message):
        start(tmp_path, *tiny, *overrides)


def test_epochs_of_a_number_of_batches_may_be_limited(tiny, tmp_path):
    start(tmp_path, *tiny, "trainer.limit_train_batches=2", "trainer.max_epochs=2")
    assert state(tmp_path)["global_step"] == 4

"""However a run ends, it resumes and ends bit for bit as if it had not been interrupted."""

import csv
import os
import random
import re
import shutil
import signal
import subprocess
import time

import pytest
import torch
from helpers import QUIET, assert_same, assert_same_end, curves, launch, resume, run_script, signal_at, start, state

from chargpt.errors import Stopped
from chargpt.run import build
from chargpt.run.folder import CHECKPOINTS
from chargpt.run.resume import load_state


@pytest.mark.parametrize(
    "overrides",
    [
        "trainer.accumulate_grad_batches=3 optimizer.schedule=cosine optimizer.warmup_steps=3",
        "optimizer=muon data.replace=0.2 trainer.gradient_clip_val=0.5 trainer.precision=bf16-mixed",
    ],
)
def test_interrupted_is_bitwise_the_same(overrides, tiny, tmp_path, monkeypatch):
    """Interrupted in the first step, the one before a validation and the one after, with text samples and another order
    of the callbacks at every start."""
    every = [*tiny, *QUIET, "trainer.max_steps=8", "model.dropout=0.2", *overrides.split()]
    once, often = tmp_path / "once", tmp_path / "often"
    start(once, *every)
    chance, real, orders = random.Random(1), build.build_callbacks, []

    def in_another_order(configs):
        orders.append(chance.sample(list(configs), len(configs)))
        return real({name: configs[name] for name in orders[-1]})

    monkeypatch.setattr(build, "build_callbacks", in_another_order)
    every.remove("callbacks.text_samples=null")
    with pytest.raises(Stopped):
        start(often, *every, *signal_at(0, 3, 4))
    for left in ([3, 4], [4]):
        with pytest.raises(Stopped):
            resume(often, *signal_at(*left))
    resume(often, "+callbacks.stop=null")
    assert len(set(map(tuple, orders))) == 4
    assert_same_end(once, often)
    assert curves(once) == curves(often)
    best = [torch.load(f / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"] for f in (once, often)]
    assert_same(*best)


def training_of(folder):
    """All that training left, but not the scores: a run that is extended was validated once more."""
    kept = state(folder)
    kept["state_dict"].pop("best_val_loss.min_value")
    tags = ("train/loss", "train/grad_norm", "lr")
    trained = [kept[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "random_states", "global_step")]
    return trained, {tag: values for tag, values in curves(folder).items() if tag in tags}


STOP = "+callbacks.mine={_target_: faults.Stop, step: %s, when: %s}"


def test_extended_or_stopped_is_bitwise_the_longer_run(tiny, tmp_path, caplog):
    """From an end that is no multiple of the validation interval, over several epochs."""
    caplog.set_level("INFO")
    long, short, stopped = (tmp_path / name for name in ("long", "short", "stopped"))
    epochs = ["trainer.limit_train_batches=5", "trainer.accumulate_grad_batches=2", "trainer.precision=64-true"]
    every = [*tiny, *QUIET, "trainer.val_check_interval=5", *epochs, "trainer.max_steps=11"]
    start(long, *every)
    start(short, *every, "trainer.max_steps=7")
    resume(short, "trainer.max_steps=11")
    start(stopped, *every, STOP % (7, "on_train_batch_end"))
    assert state(stopped)["global_step"] == curves(stopped)["train/loss"][-1][0] == 7
    assert f"To resume:   python train.py resume={stopped}" in caplog.text
    resume(stopped, "+callbacks.mine=null")
    for folder in (short, stopped):
        assert_same(training_of(long), training_of(folder))


def test_a_moved_folder_keeps_its_best(tiny, tmp_path):
    best = start(tmp_path / "a", *tiny, *QUIET, "optimizer.lr=2", "trainer.val_check_interval=2")
    values, bests = (list(dict(curves(tmp_path / "a")[tag]).values()) for tag in ("val/loss", "val/best_loss"))
    assert values != sorted(values, reverse=True)  # it goes up and down
    assert bests == [min(values[: n + 1]) for n in range(len(values))]
    assert best == min(values)
    shutil.move(tmp_path / "a", tmp_path / "b")
    kept = (tmp_path / "b" / "checkpoints" / "best.ckpt").read_bytes()
    assert resume(tmp_path / "b", "trainer.max_steps=13") == pytest.approx(best)
    assert (tmp_path / "b" / "checkpoints" / "best.ckpt").read_bytes() == kept
    assert not (tmp_path / "a").exists()


def test_a_time_limit_counts_from_each_start(tiny, tmp_path):
    limit = "trainer.max_time={hours: 1}"
    start(tmp_path, *tiny, *QUIET, limit, "trainer.max_steps=3")
    kept = state(tmp_path)
    [seconds] = [each["time_elapsed"] for name, each in kept["callbacks"].items() if name.startswith("Timer")]
    seconds.update(dict.fromkeys(seconds, 1e6))
    torch.save(kept, tmp_path / "checkpoints" / "last.ckpt")
    resume(tmp_path, limit, "trainer.max_steps=6")
    assert state(tmp_path)["global_step"] == 6


def test_a_stop_within_an_accumulated_step_waits_for_its_end(tiny, tmp_path):
    """An epoch of 5 batches has 3 steps, so that batch 6, which is validated, is the first half of step 4."""
    epochs = ["trainer.accumulate_grad_batches=2", "trainer.limit_train_batches=5", "trainer.val_check_interval=3"]
    start(
        tmp_path, *tiny, *QUIET, *epochs, STOP % (3, "on_validation_end"), "callbacks.last_checkpoint.every_n_steps=100"
    )
    assert state(tmp_path)["global_step"] == 4


def test_a_run_that_failed_before_its_first_save_begins_again(tiny, tmp_path):
    """By the same command, with new curves; `resume=` says so."""
    line = [*tiny, f"hydra.run.dir={tmp_path}", "callbacks.last_checkpoint.every_n_steps=1000000"]
    harm = "+callbacks.harm={_target_: faults.Raise, step: 5, error: bug}"
    for _ in range(2):
        run_script("train.py", *line, harm, status=1)
        assert (tmp_path / "checkpoints" / "best.ckpt").exists()
        assert [step for step, _ in curves(tmp_path)["train/loss"]] == [2, 4]
        for again, message in (([f"resume={tmp_path}", harm], "ended before its first save"), (line, "would be lost")):
            done = run_script("train.py", *again, status=2)
            assert done.stderr.count("\n") == 1
            assert message in done.stderr


# Loggers


CSV = ["trainer.logger={_target_: lightning.pytorch.loggers.CSVLogger, save_dir: '${run_dir}', name: csv, version: ''}"]


def rows(folder):
    with (folder / "csv" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [{key: value for key, value in row.items() if key != "chars_per_second"} for row in csv.DictReader(file)]


def test_a_csv_file_continues(tiny, tmp_path):
    """The rows after the saved step are written again."""
    start(tmp_path / "whole", *tiny, *QUIET, *CSV)
    with pytest.raises(Stopped):
        start(tmp_path / "often", *tiny, *QUIET, *CSV, *signal_at(7))
    shutil.copy(tmp_path / "often" / "checkpoints" / "previous.ckpt", tmp_path / "often" / "checkpoints" / "last.ckpt")
    resume(tmp_path / "often", *CSV, "+callbacks.stop=null")
    assert rows(tmp_path / "often") == rows(tmp_path / "whole")


# Signals, kills, locks, full disks: real processes


@pytest.mark.processes
def test_ctrl_c_during_the_imports(tmp_path):
    run = launch(f"hydra.run.dir={tmp_path}/run")
    time.sleep(0.5)
    run.send_signal(signal.SIGINT)
    printed = run.communicate(timeout=60)[1]
    assert run.returncode in (130, -signal.SIGINT), printed
    assert "Traceback" not in printed


@pytest.mark.processes
def test_one_process_for_a_run_and_ctrl_c(tiny, tmp_path):
    """While a process is at work in the folder, no other starts there."""
    folder = tmp_path / "outputs" / "run"
    long = [*tiny, "trainer.max_steps=1000000", "callbacks.last_checkpoint.every_n_steps=10", f"hydra.run.dir={folder}"]
    run = launch(*long, "resume=allow")
    while not (folder / CHECKPOINTS[1]).exists():
        time.sleep(0.1)
        assert run.poll() is None, run.communicate()[1]
    config = (folder / ".hydra" / "config.yaml").read_bytes()
    for line in ([f"resume={folder}"], ["resume=auto"], [f"hydra.run.dir={folder}"], [*long, "resume=allow"]):
        done = run_script("train.py", *line, status=2, cwd=tmp_path)
        assert "error: another process is at work in " in done.stderr
        assert run.poll() is None
    assert (folder / ".hydra" / "config.yaml").read_bytes() == config
    run.send_signal(signal.SIGINT)
    printed = run.communicate(timeout=60)[1]
    assert run.returncode == 130, printed
    assert f"to resume: python train.py resume={folder}" in printed
    assert "Traceback" not in printed
    assert load_state(folder).step == int(re.search(r"Stopped after step (\d+)", printed)[1])


@pytest.mark.processes
def test_of_two_runs_that_start_in_one_folder_one_is_refused(tiny, tmp_path):
    runs = [launch(*tiny, f"hydra.run.dir={tmp_path}/run") for _ in range(2)]
    messages = [run.communicate(timeout=120)[1] for run in runs]
    assert sorted(run.returncode for run in runs) == [0, 2], messages
    [refused] = [each for run, each in zip(runs, messages, strict=True) if run.returncode == 2]
    assert re.search("error: (another process is at work in|.* holds a run already)", refused)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a small file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_the_checkpoints(small_disk, tiny):
    """Checkpoints grow until none fits: earlier ones stay whole, and one line says why the run ended."""
    size = ["model.n_embd=32", "model.n_layer=1", "trainer.max_steps=1000", "callbacks.last_checkpoint.every_n_steps=1"]
    done = run_script("train.py", *tiny, *size, f"hydra.run.dir={small_disk}/run", status=2)
    assert "error: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    kept = list((small_disk / "run" / "checkpoints").iterdir())
    assert {file.suffix for file in kept} == {".ckpt"}
    for file in kept:
        torch.load(file, weights_only=True)


@pytest.mark.kills
@pytest.mark.parametrize(("devices", "wanted"), [(1, 40), (2, 15)])
def test_kills(devices, wanted, tiny, tmp_path):
    """SIGKILL at random moments, in start-up, steps, saves and validations, and one command line for every start: the
    end is bitwise that of a quiet run, and no start has to wait for another."""
    line = [*tiny, "model.n_embd=64", "trainer.max_steps=1500", "trainer.val_check_interval=100", "model.dropout=0.2"]
    line += ["callbacks.last_checkpoint.every_n_steps=7", "trainer.log_every_n_steps=5", "resume=allow"]
    line += [f"trainer.devices={devices}"]
    with launch(*line, f"hydra.run.dir={tmp_path}/quiet") as quiet:
        assert quiet.wait(600) == 0, quiet.stderr.read()
    chance, kills, runs = random.Random(0), 0, 0
    while kills < wanted:
        runs += 1
        folder, is_whole = tmp_path / f"run{runs}", False
        while not is_whole:
            with launch(*line, f"hydra.run.dir={folder}", start_new_session=True) as run:
                try:
                    is_whole = run.wait(chance.uniform(3, 11)) == 0
                    assert is_whole, run.stderr.read()
                except subprocess.TimeoutExpired:
                    kills += 1
                    os.killpg(run.pid, signal.SIGKILL)
        assert_same_end(tmp_path / "quiet", folder)
        print(f"run {runs}: bitwise the same after {kills} kills in all")

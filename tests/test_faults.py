"""What befalls real runs: signals, kills, full disks, losses that are not finite."""

import os
import random
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from helpers import ROOT, STEPS, assert_same, launch, run_script, signal_at, state

from chargpt.errors import UserError
from chargpt.run.resume import load_state

HARM = {"env": {"PYTHONPATH": str(ROOT / "tests")}}


def wait_for(process, text):
    """Read the process's messages up to the one that has `text`."""
    seen = ""
    for line in process.stderr:
        seen += line
        if text in line:
            return seen
    raise AssertionError(f"ended without {text!r}: {seen}")


@pytest.mark.processes
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_command_resumes(signum, status, tiny, tmp_path):
    run = launch(*tiny, "trainer.max_steps=1000000", "trainer.val_check_interval=50", f"hydra.run.dir={tmp_path}/run")
    wait_for(run, "val loss")
    run.send_signal(signum)
    rest = run.communicate(timeout=60)[1]
    assert run.returncode == status, rest
    assert f"To resume: python train.py resume={tmp_path}/run" in rest
    assert "Traceback" not in rest
    step = int(re.search(r"Stopped after step (\d+)", rest)[1])
    assert load_state(tmp_path / "run").step == step


def test_a_signal_ends_a_sweep(tiny, tmp_path):
    done = run_script("train.py", "-m", *tiny, *signal_at(2), "seed=1,2,3", f"hydra.sweep.dir={tmp_path}", **HARM)
    assert done.returncode == 143, done.stderr
    assert len(list(tmp_path.glob("*/checkpoints"))) == 1
    assert len(list(tmp_path.glob("*/checkpoints/last.ckpt"))) == 1


def test_a_loss_that_is_not_finite_is_one_line_with_advice(tiny, tmp_path):
    harm = ["+callbacks.harm._target_=faults.Poison", "+callbacks.harm.step=4"]
    done = run_script("train.py", *tiny, *harm, f"hydra.run.dir={tmp_path}/run", **HARM)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: the training loss is nan in step 5; earlier checkpoints are kept")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        ("memory", 1, "error: out of memory: a smaller batch"),
        ("disk", 2, "error: No space left on device"),
        ("bug", 1, ""),
    ],
)
def test_other_errors_keep_what_was_saved(error, status, message, tiny, tmp_path):
    harm = ["+callbacks.harm._target_=faults.Raise", "+callbacks.harm.step=4", f"+callbacks.harm.error={error}"]
    done = run_script("train.py", *tiny, *STEPS, *harm, f"hydra.run.dir={tmp_path}/run", **HARM)
    assert done.returncode == status, done.stderr
    assert ("Traceback" in done.stderr) == (error == "bug")  # a bug keeps its traceback
    assert re.search(message, done.stderr.splitlines()[-1])
    assert state(tmp_path / "run")["global_step"] == 3


def test_a_bug_in_a_sweep_leaves_its_traceback_in_the_jobs_log(tiny, tmp_path):
    harm = ["+callbacks.harm._target_=faults.Raise", "+callbacks.harm.step=2,100", "+callbacks.harm.error=bug"]
    done = run_script("train.py", "-m", *tiny, *harm, f"hydra.sweep.dir={tmp_path}", **HARM)
    assert done.returncode == 1
    assert "failed: unexpected KeyError: 'a bug'" in done.stderr
    assert "1 of 2 jobs finished" in done.stderr
    assert "Traceback" not in done.stderr
    bad, good = sorted(tmp_path.glob("*/train.log"), key=lambda log: "step=100" in log.parent.name)
    assert "Traceback" in bad.read_text(encoding="utf-8")
    assert "KeyError: 'a bug'" in bad.read_text(encoding="utf-8")
    assert "Best validation loss" in good.read_text(encoding="utf-8")


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("may not mount a small file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_the_checkpoints(small_disk, tiny):
    """Checkpoints grow until none fits: what was saved before stays whole, and one line says why the run ended."""
    size = ["model.n_embd=32", "model.n_layer=1", "trainer.max_steps=1000", "callbacks.last_checkpoint.every_n_steps=1"]
    done = run_script("train.py", *tiny, *size, f"hydra.run.dir={small_disk}/run")
    assert done.returncode == 2, done.stderr
    assert re.search("error: No space left on device", done.stderr)
    assert "Traceback" not in done.stderr
    kept = list((small_disk / "run" / "checkpoints").glob("*.ckpt"))
    assert kept
    for file in kept:
        torch.load(file, weights_only=True)
    assert not list((small_disk / "run" / "checkpoints").glob(".*"))


def test_a_read_only_disk_is_one_line(small_disk, tiny):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = run_script("train.py", *tiny, f"hydra.run.dir={small_disk}/run")
    assert done.returncode == 2
    assert re.fullmatch(f"error: Read-only file system: {small_disk}/run.*\n", done.stderr)


@pytest.mark.processes
def test_two_runs_at_once_on_an_empty_cache(tiny, text_file, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    runs = [launch(*tiny, f"hydra.run.dir={tmp_path}/{n}") for n in range(2)]
    assert [run.wait(120) for run in runs] == [0, 0]
    for run in runs:
        run.stderr.close()
    assert_same(state(tmp_path / "0")["state_dict"], state(tmp_path / "1")["state_dict"])


@pytest.mark.processes
def test_of_two_runs_in_one_folder_one_is_refused(tiny, tmp_path):
    runs = [launch(*tiny, f"hydra.run.dir={tmp_path}/run") for _ in range(2)]
    messages = [run.communicate(timeout=120)[1] for run in runs]
    assert sorted(run.returncode for run in runs) == [0, 2], messages
    refused = [re.search("error: (another process is at work in|.* holds a run already)", each) for each in messages]
    assert len(list(filter(None, refused))) == 1


# Checkpoints from strangers


class Reduce:
    def __reduce__(self):
        return os.mkdir, ("was_here",)


def test_pickles_that_run_code_do_not(tiny_run, tmp_path, monkeypatch):
    """In a callback's state; tests/test_checkpoint.py has more of them."""
    monkeypatch.chdir(tmp_path)
    good = torch.load(tiny_run / "checkpoints" / "last.ckpt", weights_only=True)
    shutil.copytree(tiny_run, tmp_path / "run")
    for name in ("last.ckpt", "previous.ckpt"):
        torch.save(good | {"callbacks": {"x": Reduce()}}, tmp_path / "run" / "checkpoints" / name)
    with pytest.raises(UserError, match="no usable checkpoint"):
        load_state(tmp_path / "run")
    assert not (tmp_path / "was_here").exists()
    torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=False)  # the attack itself is real
    assert (tmp_path / "was_here").exists()


KILLS = {  # how often, and what is special
    "plain": (40, []),
    "workers": (25, ["data.num_workers=2"]),
    "two devices": (15, ["trainer.devices=2"]),
    "encoding": (25, []),
}


@pytest.mark.kills
@pytest.mark.parametrize("kind", KILLS)
def test_kills(kind, tiny, tmp_path, monkeypatch):
    """SIGKILL at random moments, in start-up, encoding, steps, saves and validations, and one command line for every
    start: the end is bitwise that of a quiet run, nothing half-written remains, and no start has to wait for another.
    """
    wanted, special = KILLS[kind]
    size = [*tiny, "model.n_embd=64", "trainer.max_steps=1500", "trainer.val_check_interval=100", "model.dropout=0.2"]
    size += ["callbacks.last_checkpoint.every_n_steps=7", "trainer.log_every_n_steps=5", "resume=allow", *special]
    if kind == "encoding":  # of a text that takes a while, and is encoded again at each start
        text = tmp_path / "text.txt"
        text.write_text(
            "".join(f"{n} green bottles, {n * 7 % 13} fell: £\n" for n in range(1_500_000)), encoding="utf-8"
        )
        size += [f"data.path={text}", "trainer.max_steps=60", "trainer.limit_val_batches=5"]
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cache = Path(os.environ["XDG_CACHE_HOME"], "chargpt", "encoded")
    with launch(*size, f"hydra.run.dir={tmp_path}/quiet") as quiet:
        assert quiet.wait(600) == 0, quiet.stderr.read()
    chance, kills, runs, saved = random.Random(0), 0, 0, []
    while kills < wanted:
        runs += 1
        folder = tmp_path / f"run{runs}"
        while True:
            if kind == "encoding":
                for file in cache.glob("*.*"):
                    if not file.name.endswith((".tmp", ".lock")):
                        file.unlink()
            with launch(*size, f"hydra.run.dir={folder}", start_new_session=True) as run:
                try:
                    run.wait(chance.uniform(3, 11))
                except subprocess.TimeoutExpired:
                    if kind == "workers":  # they are left behind, and hold nothing
                        run.kill()
                    else:
                        os.killpg(run.pid, signal.SIGKILL)
                    kills += 1
                else:
                    assert run.returncode == 0, run.stderr.read()
                    break
            saved.append(load_state(folder).step if (folder / "checkpoints" / "last.ckpt").exists() else None)
        a, b = state(tmp_path / "quiet"), state(folder)
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "random_states", "global_step"):
            assert_same(a[key], b[key], key)
        print(f"{kind}, run {runs}: bitwise the same after {kills} kills in all, at saved steps {saved}")

"""Real runs under Ctrl-C, two at once, on a full disk, and killed at random moments."""

import os
import random
import re
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from helpers import assert_same, launch, run_script, state

from chargpt.run.resume import load_state


@pytest.mark.processes
def test_ctrl_c_saves_and_prints_how_to_resume(tiny, tmp_path):
    run = launch(*tiny, "trainer.max_steps=1000000", "trainer.val_check_interval=50", f"hydra.run.dir={tmp_path}/run")
    assert any("val loss" in line for line in run.stderr)  # reads up to the first validation
    run.send_signal(signal.SIGINT)
    rest = run.communicate(timeout=60)[1]
    assert run.returncode == 130, rest
    assert f"To resume: python train.py resume={tmp_path}/run" in rest
    assert "Traceback" not in rest
    step = int(re.search(r"Stopped after step (\d+)", rest)[1])
    assert load_state(tmp_path / "run").step == step


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
    done = run_script("train.py", *tiny, *size, f"hydra.run.dir={small_disk}/run")
    assert done.returncode == 2, done.stderr
    assert "error: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    kept = list((small_disk / "run" / "checkpoints").iterdir())
    assert {file.suffix for file in kept} == {".ckpt"}
    for file in kept:
        torch.load(file, weights_only=True)


KILLS = {  # how often, with which overrides
    "plain": (40, []),
    "workers": (25, ["data.num_workers=2"]),
    "two devices": (15, ["trainer.devices=2"]),
    "encoding": (25, ["trainer.max_steps=60", "trainer.limit_val_batches=5"]),
}


@pytest.mark.kills
@pytest.mark.parametrize("kind", KILLS)
def test_kills(kind, tiny, tmp_path, monkeypatch):
    """SIGKILL at random moments, in start-up, encoding, steps, saves and validations, and one command line for every
    start: the end is bitwise that of a quiet run, nothing half-written remains, and no start has to wait for another.
    """
    wanted, special = KILLS[kind]
    line = [*tiny, "model.n_embd=64", "trainer.max_steps=1500", "trainer.val_check_interval=100", "model.dropout=0.2"]
    line += ["callbacks.last_checkpoint.every_n_steps=7", "trainer.log_every_n_steps=5", "resume=allow", *special]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cache = Path(tmp_path, "cache", "chargpt", "encoded")
    if kind == "encoding":  # a text that takes a while, and is encoded again at each start
        text = "".join(f"{n} green bottles, {n * 7 % 13} fell: £\n" for n in range(1_500_000))
        (tmp_path / "text.txt").write_text(text, encoding="utf-8")
        line += [f"data.path={tmp_path}/text.txt"]
    with launch(*line, f"hydra.run.dir={tmp_path}/quiet") as quiet:
        assert quiet.wait(600) == 0, quiet.stderr.read()
    chance, kills, runs = random.Random(0), 0, 0
    while kills < wanted:
        runs += 1
        folder, is_whole = tmp_path / f"run{runs}", False
        while not is_whole:
            for file in cache.glob("[!.]*.*") if kind == "encoding" else ():
                file.unlink()
            with launch(*line, f"hydra.run.dir={folder}", start_new_session=True) as run:
                try:
                    is_whole = run.wait(chance.uniform(3, 11)) == 0
                    assert is_whole, run.stderr.read()
                except subprocess.TimeoutExpired:
                    kills += 1
                    if kind == "workers":  # they are left behind, and hold nothing
                        run.kill()
                    else:
                        os.killpg(run.pid, signal.SIGKILL)
        a, b = state(tmp_path / "quiet"), state(folder)
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "random_states", "global_step"):
            assert_same(a[key], b[key], key)
        print(f"{kind}, run {runs}: bitwise the same after {kills} kills in all")

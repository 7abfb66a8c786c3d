"""Sweeps as a person runs them: their names, their end, and how they go on."""

import contextlib
import csv
import importlib.util
import json
import re
import shlex
import sqlite3

import pytest
from helpers import ROOT, STEPS, assert_same, events, launch, run_fresh, run_script, signal_at, state
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from chargpt.run.config import with_quoted_paths
from chargpt.sweep.records import read_sweep

HARM = {"env": {"PYTHONPATH": str(ROOT / "tests")}}
SWEPT = ["model.n_layer=1,2", "seed=1,2"]
NAMES = ["0_n_layer=1,seed=1", "1_n_layer=1,seed=2", "2_n_layer=2,seed=1", "3_n_layer=2,seed=2"]


def needs(plugin):
    there = importlib.util.find_spec(f"hydra_plugins.{plugin}") if importlib.util.find_spec("hydra_plugins") else None
    return pytest.mark.skipif(there is None, reason=f"needs {plugin}")


@pytest.fixture(scope="module")
def fixed(tiny):
    """What all jobs have alike."""
    return [*(each for each in tiny if "n_layer" not in each), *STEPS]


def sweep(fixed, folder, *more, by=run_script, **options):
    return by("train.py", "-m", *fixed, *more, f"hydra.sweep.dir={folder}", **options)


@pytest.fixture(scope="module")
def whole(fixed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweeps") / "whole"
    done = sweep(fixed, folder, *SWEPT)
    assert done.returncode == 0, done.stderr
    return folder, done.stderr


def test_what_a_sweep_says_and_leaves(whole, fixed):
    folder, said = whole
    assert sorted(each.name for each in folder.iterdir() if each.is_dir()) == NAMES
    first, *jobs = said.split("\n\n")[0].splitlines()
    assert first == f"4 jobs in {folder}; the lines of each are in its train.log"
    for n, line in enumerate(jobs, start=1):
        title = NAMES[n - 1].partition("_")[2].replace(",", ", ")
        assert re.fullmatch(rf"{n} of 4: {title}: val loss \d\.\d{{4}} at step \d+, \d+ s", line), line
    assert len(jobs) == 4
    assert "4 of 4 jobs finished" in said
    assert "Over seeds:" in said
    best = read_sweep(folder).jobs[0].folder
    assert said.rstrip().splitlines()[-1] == f"Sample the best: python sample.py --ckpt {shlex.quote(str(best))}"
    rows = list(csv.DictReader((folder / "table.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["state"] for row in rows] == ["finished"] * 4
    for row in rows:
        log = (folder / row["folder"] / "train.log").read_text(encoding="utf-8")
        assert f"Best validation loss {float(row['best_val_loss']):.4f}" in log
        assert (folder / row["folder"] / "loss.png").exists()
    assert (folder / "sweep.png").exists()
    kept = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    assert kept["swept"] == ["model.n_layer", "seed"]
    assert kept["fixed"] == with_quoted_paths(fixed)


def test_hparams_show_what_is_swept_first(whole):
    folder, _ = whole
    content = events(folder / NAMES[0]).summary_metadata["_hparams_/experiment"].plugin_data.content
    names = [info.name for info in HParamsPluginData.FromString(content).experiment.hparam_infos]
    assert sorted(names)[:3] == ["* model.n_layer", "* seed", "accumulate_grad_batches"]  # as TensorBoard sorts them


def test_started_again_all_is_kept(whole, fixed):
    folder, _ = whole
    before = {file: file.stat().st_mtime_ns for file in folder.glob("*/checkpoints/*")}
    done = sweep(fixed, folder, *SWEPT, "resume=allow", "optimizer=adamw_small")
    assert done.returncode == 1
    said = "failed: optimizer.lr=0.003 cannot be changed"
    assert done.stderr.count(said) == 8  # at once, and in the table
    done = sweep(fixed, folder, *SWEPT, "resume=allow")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(", finished before\n") == 4
    assert {file: file.stat().st_mtime_ns for file in folder.glob("*/checkpoints/*")} == before


def test_without_allow_nothing_is_touched(whole, fixed):
    folder, _ = whole
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    done = sweep(fixed, folder, *SWEPT)
    assert done.returncode == 2
    assert done.stderr == f"error: {folder} holds a sweep already; resume=allow resumes it\n"
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_with_other_values_what_was_trained_is_kept(fixed, tmp_path):
    """One that is put between others moves the places; a longer training is gone on with; the last word counts."""
    wait = ["+callbacks.early._target_=lightning.pytorch.callbacks.EarlyStopping", "+callbacks.early.monitor=val/loss"]
    stops_early = [*wait, "+callbacks.early.patience=1", "+callbacks.early.min_delta=9", "trainer.val_check_interval=2"]
    first = ["resume=allow", "optimizer=glob(adamw*)", *stops_early]
    done = sweep(fixed, tmp_path / "sweep", *first, "seed=5")
    assert done.returncode == 0, done.stderr
    names = ["0_optimizer=adamw", "1_optimizer=adamw_small"]
    assert sorted(folder.name for folder in (tmp_path / "sweep").glob("*/")) == names
    weights = (tmp_path / "sweep" / names[1] / "checkpoints" / "last.ckpt").read_bytes()
    assert state(tmp_path / "sweep" / names[1])["global_step"] == 4  # of 12
    second = ["resume=allow", "optimizer=adamw_small,adamw", *stops_early, "seed=3,4", "seed=5"]
    done = sweep(fixed, tmp_path / "sweep", *second)
    assert done.returncode == 0, done.stderr
    assert "1 of 2: optimizer=adamw_small: val loss" in done.stderr
    assert done.stderr.count(", finished before\n") == 2
    assert sorted(folder.name for folder in (tmp_path / "sweep").glob("*/")) == names
    assert (tmp_path / "sweep" / names[1] / "checkpoints" / "last.ckpt").read_bytes() == weights


def test_a_sweep_from_trained_weights_goes_on(tiny_run, tmp_path):
    """On from its own weights then."""
    options = ["resume=allow", f"init_from={tiny_run}", "data=file", f"data.path={tiny_run}/.hydra/config.yaml"]
    options += ["data.block_size=16", "data.batch_size=4", "seed=1", *STEPS]
    for said in ("Weights to start from", ", finished before"):
        done = sweep(options, tmp_path / "sweep")
        assert done.returncode == 0, done.stderr
        log = (tmp_path / "sweep" / "0_defaults" / "train.log").read_text(encoding="utf-8")
        assert said in done.stderr + log


def test_cut_off_and_gone_on_with(whole, fixed, tmp_path):
    """The jobs that had ended are kept, the one cut off ends bit for bit as if it had not been, the rest begin."""
    folder, _ = whole
    done = sweep(fixed, tmp_path / "sweep", *SWEPT, *signal_at(8), **HARM)
    assert done.returncode == 143, done.stderr
    assert "0 of 4 jobs finished" in done.stderr
    assert "(not finished)" in done.stderr
    line = done.stderr.rstrip().splitlines()[-1]
    assert line.startswith("To resume: python train.py -m resume=allow hydra.sweep.dir=")
    assert "Traceback" not in done.stderr
    assert state(tmp_path / "sweep" / NAMES[0])["global_step"] == 9
    words = [each for each in shlex.split(line)[4:] if "callbacks.stop" not in each]
    done = run_script("train.py", *words, "+callbacks.stop=null")
    assert done.returncode == 0, done.stderr
    assert "4 of 4 jobs finished" in done.stderr
    for name in NAMES:
        one, other = state(folder / name), state(tmp_path / "sweep" / name)
        for key in ("state_dict", "optimizer_states", "random_states", "global_step"):
            assert_same(one[key], other[key], key)


def test_a_job_that_fails(fixed, tmp_path):
    """Its reason is in its log, on the terminal and in the table; the others go on; the status tells."""
    done = sweep(fixed, tmp_path, "model.n_head=3,2", "model.n_layer=1")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    reason = "model.n_embd must be divisible by model.n_head; got 16 and 3"
    assert f"1 of 2: n_head=3: failed: {reason}\n" in done.stderr
    assert done.stderr.rstrip().splitlines()[-1] == "error: 1 of 2 jobs did not finish"
    assert f"0_n_head=3  (failed: {reason})\n" in done.stderr
    assert f"error: {reason}" in (tmp_path / "0_n_head=3" / "train.log").read_text(encoding="utf-8")
    assert (tmp_path / "1_n_head=2" / "checkpoints" / "best.ckpt").exists()
    done = sweep(fixed, tmp_path / "odd", "trainer.max_steps=abc", "seed=1,2")
    assert done.returncode == 1
    assert done.stderr.count("(failed: trainer.max_steps must be a whole number of steps") == 2


def test_a_sweep_resumes_by_its_command(whole):
    """A folder alone is refused, in one line that names the command that prints it."""
    folder, _ = whole
    for line in ([f"resume={folder}"], ["-m", f"resume={folder}"], ["-m", "resume=auto"], ["-m", "resume=allow"]):
        done = run_script("train.py", *line, "seed=1,2" if "-m" in line else "seed=1")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "python -m chargpt.compare" in done.stderr


def test_several_devices_are_refused(tiny, tmp_path):
    """Before the first job; where only a job says so, in its place."""
    said = "a sweep trains each job on one device: its other processes would each sweep again"
    done = sweep(tiny, tmp_path / "sweep", "trainer.devices=2", "seed=1,2")
    assert (done.returncode, done.stderr) == (2, f"error: {said}\n")
    done = sweep(tiny, tmp_path / "sweep", "trainer.devices=2,3")
    assert done.returncode == 1
    assert done.stderr.count(f"failed: {said}") == 4  # as it happens, and in the table


def test_a_sweep_without_saying_so(tmp_path):
    done = run_script("train.py", "seed=1,2", f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 2
    assert done.stderr == "error: Ambiguous value for argument 'seed=1,2'; -m trains a run for each of its values\n"


def test_nothing_is_written_through_a_link(fixed, tmp_path):
    (tmp_path / "mine").write_text("mine", encoding="utf-8")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "multirun.yaml").symlink_to(tmp_path / "mine")
    for more in ([], ["resume=allow"]):
        done = sweep(fixed, tmp_path / "sweep", "seed=1,2", *more)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "a link that leads out of it" in done.stderr
    assert (tmp_path / "mine").read_text(encoding="utf-8") == "mine"


# Other launchers and sweepers


@pytest.mark.slow
@needs("hydra_joblib_launcher")
def test_under_joblib(whole, fixed, tmp_path):
    """Jobs in processes of their own: the same runs; failures and interruptions are noticed."""
    folder, _ = whole
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done = sweep(fixed, tmp_path / "two", "model.n_head=3,2", "model.n_layer=1", *joblib, by=run_fresh)
    assert done.returncode == 1
    assert "(failed: model.n_embd must be divisible" in done.stderr
    assert "Traceback" not in done.stderr
    done = sweep(fixed, tmp_path / "three", *SWEPT, *joblib, *signal_at(8), by=run_fresh, **HARM)
    assert done.returncode == 143, done.stderr
    (line,) = [each for each in done.stderr.splitlines() if each.startswith("To resume: ")]
    words = [each for each in shlex.split(line)[4:] if "callbacks.stop" not in each]
    done = run_fresh("train.py", *words, "+callbacks.stop=null", timeout=300)
    assert done.returncode == 0, done.stderr
    places = sorted(line.partition(":")[0] for line in done.stderr.splitlines() if " of 4: " in line)
    assert places == [f"{n} of 4" for n in range(1, 5)]
    for name in NAMES:
        assert_same(state(folder / name)["state_dict"], state(tmp_path / "three" / name)["state_dict"])


@pytest.mark.slow
@needs("hydra_submitit_launcher")
def test_under_submitit_a_requeued_job_goes_on(whole, fixed, tmp_path):
    """After the signal of a preemption, the local executor starts the job again, as SLURM does."""
    folder, _ = whole
    launcher = ["hydra/launcher=submitit_local", "resume=allow"]
    signal = signal_at(8, signum=12, once=tmp_path / "sent")
    done = sweep(fixed, tmp_path / "sweep", "model.n_layer=1", "seed=1", *signal, *launcher, by=run_fresh, **HARM)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sent").exists()
    name = next(tmp_path.glob("sweep/0_*"))
    log = (name / "train.log").read_text(encoding="utf-8")
    assert "from step 9" in log
    assert_same(state(folder / NAMES[0])["state_dict"], state(name)["state_dict"])


@pytest.mark.slow
@needs("hydra_optuna_sweeper")
def test_an_optuna_study_goes_on(fixed, tmp_path):
    search = ["hydra/sweeper=search", "model.n_layer=1"]
    seeded = ["hydra.sweeper.sampler.seed=1", "hydra.sweeper.n_trials=3"]
    done = sweep(fixed, tmp_path / "first", *search, *seeded, by=run_fresh)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 jobs finished" in done.stderr
    assert (tmp_path / "first" / "study.db").exists()
    # Two processes, as with a GPU each, share the study, and each has a folder of its own.
    more = [*search, "hydra.sweeper.n_trials=1", f"hydra.sweeper.storage=sqlite:///{tmp_path}/first/study.db"]
    folders = [tmp_path / name for name in ("first", "second", "third")]
    both = [launch("-m", *fixed, *more, "resume=allow", f"hydra.sweep.dir={folder}") for folder in folders[1:]]
    for each in both:
        assert each.wait(300) == 0, each.stderr.read()
        each.stderr.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "first" / "study.db")) as study:
        values = sorted(value for (value,) in study.execute("select value from trial_values"))
    assert values == pytest.approx(sorted(job.loss for folder in folders for job in read_sweep(folder).jobs), abs=1e-6)
    assert len(values) == 5
    done = sweep(fixed, tmp_path / "first", *search, "resume=allow", "hydra.sweeper.n_trials=1", by=run_fresh)
    assert done.returncode == 0, done.stderr


def test_a_bug_in_a_job_leaves_its_traceback_in_the_jobs_log(fixed, tmp_path):
    bug = "+callbacks.harm={_target_: faults.Raise, step: 2, error: bug}"
    done = sweep(fixed, tmp_path, bug, "seed=1", **HARM)
    assert done.returncode == 1
    assert "failed: unexpected KeyError: 'a bug'" in done.stderr
    assert "Traceback" not in done.stderr
    [file] = tmp_path.glob("*/train.log")
    assert "Traceback" in file.read_text(encoding="utf-8")

"""Sweeps: their folders, how they end, how they resume, and other launchers and sweepers."""

import re
import shlex
import shutil

import pytest
from filelock import FileLock
from helpers import ROOT, STEPS, assert_same_end, events, run_fresh, run_script, signal_at, state
from omegaconf import ListConfig
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from chargpt.compare import read_sweep
from chargpt.history import Job, Plan, write_record
from chargpt.sweep import job_folder

SWEPT = ["model.n_layer=1,2", "seed=1,2"]
NAMES = ["0_n_layer=1,seed=1", "1_n_layer=1,seed=2", "2_n_layer=2,seed=1", "3_n_layer=2,seed=2"]


@pytest.fixture(scope="module")
def fixed(tiny):
    """What all jobs have alike: without pictures and samples, which take most of the time."""
    without = [f"callbacks.{name}=null" for name in ("attention_maps", "surprise", "text_samples")]
    return [*(each for each in tiny if "n_layer" not in each and "callbacks" not in each), *without, *STEPS]


def sweep(fixed, folder, *more, status=0, by=run_script):
    """What a sweep prints."""
    return by("train.py", "-m", *fixed, *more, f"hydra.sweep.dir={folder}", status=status).stderr


def as_printed(line, by=run_script):
    """Resume a sweep as its last line says; what it prints."""
    words = [each for each in shlex.split(line)[4:] if "callbacks.stop" not in each]
    return by("train.py", *words, "+callbacks.stop=null").stderr


def contents(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.name != ".lock"}


# Folders


def test_the_folder_of_a_job(tmp_path):
    """Named by its number and its values; the same if the values are the same. One level, short and never hidden."""

    def folder(number, *overrides):
        return job_folder(str(tmp_path), number, ListConfig(list(overrides)))

    write_record(tmp_path, Plan(["optimizer.lr", "data.path"], 2, []))
    assert folder(0, "seed=1", "optimizer.lr=1e-3") == "0_lr=0.001"
    (tmp_path / "0_lr=0.001").mkdir()
    write_record(tmp_path / "0_lr=0.001", Job(0, {"optimizer.lr": 0.001}))
    assert folder(5, "seed=2", "optimizer.lr=0.0010") == "0_lr=0.001"
    assert folder(1, "seed=1", "optimizer.lr=0.01") == "1_lr=0.01"
    assert folder(3, "seed=1") == "3_defaults"
    assert folder(4, "data.path='../a b\\n:道'", "optimizer.lr=1") == "4_path=.._a_b_n_道,lr=1"
    write_record(tmp_path, Plan([f"k{n}" for n in range(9)], 1, []))
    assert len(folder(0, *(f"+k{n}='{'道' * 50}'" for n in range(9))).encode()) <= 190


def test_folders_of_others_are_left_alone(fixed, tmp_path):
    for name in ("table.csv", "link", ".lock"):
        (folder := tmp_path / name).mkdir()
        (folder / name).write_text("mine", encoding="utf-8")
    (tmp_path / "link" / "link").unlink()
    (tmp_path / "link" / "link").symlink_to(tmp_path / "table.csv" / "table.csv")
    before = contents(tmp_path)
    with FileLock(tmp_path / ".lock" / ".lock"):  # as another sweep holds it
        for folder in tmp_path.iterdir():
            printed = sweep(fixed, folder, "seed=1,2", "resume=allow", status=2)
            refused = "error: .*(has files but no sweep:|a link that leads out|another process is at work).*\n"
            assert re.fullmatch(refused, printed)
    assert contents(tmp_path) == before


def test_what_differs_between_two_starts_tells_jobs_apart(fixed, tmp_path):
    """A single value that is another one, and one that is added to values that were swept."""
    sweep(fixed, tmp_path, "optimizer.lr=1e-3", "seed=1,2")
    sweep(fixed, tmp_path, "resume=allow", "optimizer.lr=1e-1", "seed=2,3")
    printed = sweep(fixed, tmp_path, "resume=allow", "optimizer.lr=1e-2", "seed=3", "optimizer.weight_decay=0.5")
    names = ("optimizer.lr", "seed", "optimizer.weight_decay")
    jobs = {tuple(each.job.values[name] for name in names) for each in read_sweep(tmp_path).results}
    assert jobs == {(0.001, 1, 0.01), (0.001, 2, 0.01), (0.1, 2, 0.01), (0.1, 3, 0.01), (0.01, 3, 0.5)}
    assert (tmp_path / "0_lr=0.01,seed=3,weight_decay=0.5").is_dir()
    assert "5 of 5 jobs finished" in printed
    assert "5 of 5 jobs finished" in sweep(fixed, tmp_path, "resume=allow", "optimizer.lr=1e-3", "seed=1,2")
    shutil.copytree(tmp_path / "0_lr=0.01,seed=3,weight_decay=0.5", tmp_path / "a copy")
    assert len(read_sweep(tmp_path).results) == 5


@pytest.mark.processes
def test_more_seeds_later(fixed, tmp_path):
    """The jobs of the seed that all had at first are kept; a job that is resumed by hand counts as well."""
    fixed = [*fixed, "model.n_layer=1"]
    sweep(fixed, tmp_path, "optimizer.lr=1e-3,2e-3")
    before = {file: content for file, content in contents(tmp_path).items() if file.suffix == ".ckpt"}
    sweep(fixed, tmp_path, "optimizer.lr=1e-3,2e-3", "seed=1337,1", *signal_at(3), "resume=allow", status=143)
    assert {file: file.read_bytes() for file in before} == before
    [cut] = [each.folder for each in read_sweep(tmp_path).results if each.job.state != "finished"]
    run_script("train.py", f"resume={cut}", "+callbacks.stop=null")
    assert "4 of 4 jobs finished" in sweep(fixed, tmp_path, "optimizer.lr=1e-3,2e-3", "seed=1337,1", "resume=allow")
    assert {file: file.read_bytes() for file in before} == before


# What is refused before the first job


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.tokenizer=chars,bytes"], "do not compare with those per character"),
        (["init_from=glob(outputs/*)"], "has no values: glob(...) takes names of files in conf/"),
        (["callbacks.text_samples.prompt=choice(null,0.9)"], "choice(null,0.9): TypeError while evaluating"),
        (["model.n_layer=1,abc"], "model.n_layer=abc: Value 'abc' of type 'str' could not be converted to Integer"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_refused_in_one_line(overrides, message, fixed, tmp_path):
    lines = sweep(fixed, tmp_path / "sweep", *overrides, status=2).splitlines()
    assert [line for line in lines if "jobs in" not in line] == lines[-1:]
    assert message in lines[-1]
    assert not list(tmp_path.glob("sweep/*/"))
    assert not (tmp_path / "sweep" / "sweep.json").exists()  # which compare would take for the newest sweep
    again = sweep(fixed, tmp_path / "sweep", *overrides, status=2).splitlines()[-1]
    assert "has files but no sweep" not in again


def test_a_job_on_several_devices_ends_the_sweep(fixed, tmp_path):
    [_, line] = sweep(fixed, tmp_path, "trainer.devices=2", "seed=1,2", status=2).splitlines()
    assert line.startswith("error: each job of a sweep takes one device (trainer.devices=1)")


def test_runs_that_start_in_one_second_have_a_folder_each():
    shown = [run_script("train.py", "--cfg", "hydra", "-p", "hydra.run.dir", "--resolve").stdout for _ in range(2)]
    assert shown[0] != shown[1]


# How sweeps run, end and resume


@pytest.fixture(scope="module")
def whole(fixed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweeps") / "whole"
    return folder, sweep(fixed, folder, *SWEPT)


@pytest.mark.processes
def test_what_a_sweep_prints_and_leaves(whole):
    folder, printed = whole
    assert sorted(each.name for each in folder.iterdir() if each.is_dir()) == NAMES
    first, *jobs = printed.split("\n\n")[0].splitlines()
    assert first == f"4 jobs in {folder}; the lines of each are in its train.log"
    for n, line in enumerate(jobs, start=1):
        title = NAMES[n - 1].partition("_")[2].replace(",", ", ")
        assert re.fullmatch(rf"{n} of 4: {title}: val loss \d\.\d{{4}} at step \d+, \d+ s, finished", line), line
    assert len(jobs) == 4
    assert "4 of 4 jobs finished" in printed
    assert "Over seeds:" in printed
    assert "\nSample the best: python sample.py --ckpt " in printed
    for job in read_sweep(folder).results:
        assert f"Best validation loss {job.loss:.4f}" in (job.folder / "train.log").read_text(encoding="utf-8")
        assert (job.folder / "loss.png").exists()
    assert (folder / "table.csv").exists()
    assert (folder / "sweep.png").exists()
    # TensorBoard sorts by name: the swept values come first.
    content = events(folder / NAMES[0]).summary_metadata["_hparams_/experiment"].plugin_data.content
    names = [info.name for info in HParamsPluginData.FromString(content).experiment.hparam_infos]
    assert sorted(names)[:3] == ["* model.n_layer", "* seed", "accumulate_grad_batches"]


@pytest.mark.processes
def test_started_again_all_is_kept(whole, fixed, tmp_path):
    folder, _ = whole
    before = contents(folder)
    printed = sweep(fixed, folder, *SWEPT, status=2)
    assert printed == f"error: {folder} holds a sweep already: add resume=allow to resume it\n"
    assert contents(folder) == before
    assert "4 of 4 jobs finished" in sweep(fixed, folder, *SWEPT, "resume=allow")
    kept = {file: content for file, content in before.items() if file.suffix in (".ckpt", ".csv")}
    assert {file: file.read_bytes() for file in kept} == kept
    # A run after a sweep, in the same process, has no report of it.
    assert "jobs" not in run_script("train.py", *fixed, f"hydra.run.dir={tmp_path}/run").stderr


@pytest.mark.processes
def test_values_that_are_added(tiny_run, fixed, tmp_path):
    """One put before others moves their places. A run that stopped early has finished; the last value typed counts."""
    early = ["+callbacks.early._target_=lightning.pytorch.callbacks.EarlyStopping", "+callbacks.early.monitor=val/loss"]
    early += ["+callbacks.early.patience=1", "+callbacks.early.min_delta=9", "trainer.val_check_interval=2"]
    fixed = [*(each for each in fixed if "model" not in each), *early, "resume=allow", "seed=3,4", "seed=5"]
    same = f"{tiny_run.parent}/./{tiny_run.name}"
    sweep(fixed, tmp_path, f"init_from={tiny_run},{same}")
    kept = {file: content for file, content in contents(tmp_path).items() if file.suffix == ".ckpt"}
    names = [each.folder for each in read_sweep(tmp_path).results]
    assert len(names) == 2
    assert "Weights to start from" in (names[0] / "train.log").read_text(encoding="utf-8")
    assert state(names[0])["global_step"] == 4  # of 12
    printed = sweep(fixed, tmp_path, f"init_from={tiny_run}/checkpoints,{same},{tiny_run}")
    assert "3 of 3 jobs finished" in printed
    assert {file: file.read_bytes() for file in kept} == kept


@pytest.mark.processes
def test_a_job_is_the_same_only_if_its_values_are(fixed, tmp_path):
    """Also in a folder that is not named by them; 2**63 is a value like others."""
    by_number = [*fixed, "model.n_layer=1", "hydra.sweep.subdir=${hydra.job.num}", "resume=allow"]
    sweep(by_number, tmp_path, "data.seed=1,9223372036854775808")
    assert {each.job.values["data.seed"] for each in read_sweep(tmp_path).results} == {1, 2**63}
    record = (tmp_path / "0" / "job.json").read_bytes()
    printed = sweep(by_number, tmp_path, "data.seed=2,1", status=2)
    assert f"error: {tmp_path}/0 holds the job seed=1: hydra.sweep.subdir has to depend" in printed
    assert (tmp_path / "0" / "job.json").read_bytes() == record


@pytest.mark.processes
def test_cut_off_and_resumed(whole, fixed, tmp_path):
    """Finished jobs are kept, the interrupted one ends bit for bit as if it had not been, the rest begin."""
    folder, _ = whole
    printed = sweep(fixed, tmp_path / "a sweep", *SWEPT, *signal_at(8), status=143)
    assert "0 of 4 jobs finished" in printed
    assert "  not finished\n" in printed
    assert "Traceback" not in printed
    line = printed.rstrip().splitlines()[-1]
    assert line.startswith("To resume: python train.py -m resume=allow 'hydra.sweep.dir=")
    assert '"\'"' not in line  # quotes within quotes
    assert state(tmp_path / "a sweep" / NAMES[0])["global_step"] == 9
    assert "4 of 4 jobs finished" in as_printed(line)
    for name in NAMES:
        assert_same_end(folder / name, tmp_path / "a sweep" / name)


@pytest.mark.processes
def test_a_job_that_fails(fixed, tmp_path):
    """Its reason is in its log, on the terminal and in the table; the others train; the status is 1."""
    mine = "+callbacks.mine._target_=lightning.pytorch.callbacks.ModelCheckpoint"
    interpolated = "+callbacks.mine.dirpath=${run_dir}/a,${run_dir}/b"
    printed = sweep(fixed, tmp_path, "model.n_layer=1", "model.n_head=3,2", interpolated, mine, status=1)
    assert "Traceback" not in printed
    reason = "model.n_embd must be divisible by model.n_head, 3; got 16"
    names = sorted(each.name for each in tmp_path.iterdir() if each.is_dir())
    assert names[0] == "0_n_head=3,dirpath=__run_dir__a"
    assert f"1 of 4: n_head=3, dirpath=${{run_dir}}/a: failed: {reason}\n" in printed
    assert f"{names[0]}  failed: {reason}\n" in printed
    assert printed.rstrip().splitlines()[-1] == "error: 2 of 4 jobs did not finish"
    assert f"error: {reason}" in (tmp_path / names[0] / "train.log").read_text(encoding="utf-8")
    assert list((tmp_path / names[3] / "b").glob("*.ckpt"))
    printed = sweep(fixed, tmp_path / "odd", "optimizer.lr=${oc.env:NOT_SET}", "seed=1,2", status=1)
    assert printed.count("failed: KeyError raised while resolving interpolation") == 4


@pytest.mark.processes
def test_a_job_that_a_time_limit_ends_has_not_finished(fixed, tmp_path):
    fixed = [*fixed, "model.n_layer=1", "seed=1", "resume=allow", "callbacks.last_checkpoint.every_n_steps=1"]
    printed = sweep(fixed, tmp_path, "trainer.max_time=00:00:00:01", "trainer.max_steps=9999999", status=1)
    assert " s, not finished\n" in printed
    steps = state(tmp_path / "0_defaults")["global_step"]
    printed = sweep(fixed, tmp_path, "trainer.max_time=00:01:00:00", f"trainer.max_steps={steps + 1}")
    assert "1 of 1 jobs finished" in printed
    assert state(tmp_path / "0_defaults")["global_step"] == steps + 1
    printed = sweep(fixed, tmp_path, "trainer.max_steps=9999999", *signal_at(steps + 4), status=143)  # it trains on
    assert "0 of 1 jobs finished" in printed


# Other launchers and sweepers


def documented(plugin):
    """The overrides of Hydra's in the command of docs/sweeps.md."""
    lines = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith("python train.py -m ") and f"={plugin} " in line]
    return [word for word in shlex.split(line) if word.startswith(("hydra/", "hydra.launcher."))]


@pytest.mark.slow
def test_under_joblib(whole, fixed, tmp_path):
    """Jobs in other processes: the same runs; an interruption ends all."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    folder, _ = whole
    jobs = ["model.n_layer=1", "seed=1,2", *documented("joblib"), *signal_at(8)]
    printed = sweep(fixed, tmp_path / "two", *jobs, status=143, by=run_fresh)
    (line,) = [each for each in printed.splitlines() if each.startswith("To resume: ")]
    printed = as_printed(line, by=run_fresh)
    places = sorted(line.partition(":")[0] for line in printed.splitlines() if " of 2: " in line)
    assert places == ["1 of 2", "2 of 2"]
    for name, other in zip(NAMES, ("0_seed=1", "1_seed=2"), strict=False):
        assert_same_end(folder / name, tmp_path / "two" / other)


@pytest.mark.slow
def test_under_submitit_a_requeued_job_resumes(whole, fixed, tmp_path):
    """After the signal of a preemption, the local executor starts the job again, as SLURM does."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    folder, _ = whole
    options = ["model.n_layer=1", "seed=1", *documented("submitit_local"), "resume=allow"]
    signal = signal_at(8, signum=12, once=tmp_path / "sent")
    sweep(fixed, tmp_path / "sweep", *options, *signal, by=run_fresh)
    assert (tmp_path / "sent").exists()
    name = next(tmp_path.glob("sweep/0_*"))
    assert "from step 9" in (name / "train.log").read_text(encoding="utf-8")
    assert_same_end(folder / NAMES[0], name)


@pytest.mark.slow
def test_an_optuna_study_goes_on(fixed, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = [*documented("search"), "model.n_layer=1"]
    seeded = ["hydra.sweeper.sampler.seed=1", "hydra.sweeper.n_trials=2"]
    assert "2 of 2 jobs finished" in sweep(fixed, tmp_path, *search, *seeded, by=run_fresh)
    assert (tmp_path / "study.db").exists()
    printed = sweep(fixed, tmp_path, *search, "resume=allow", "hydra.sweeper.n_trials=1", by=run_fresh)
    assert "3 of 3 jobs finished" in printed

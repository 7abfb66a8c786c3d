"""Resuming replays harmless overrides only, takes the right run and checkpoint, and refuses another run's settings."""

import io
import os
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from helpers import QUIET, assert_same, composed, curves, resume, resumed, run_script, signal_at, start, state
from hydra.core.override_parser.overrides_parser import OverridesParser

from chargpt.errors import UserError
from chargpt.kernels.choice import Precision
from chargpt.run import build
from chargpt.run.config import read_config
from chargpt.run.folder import CHECKPOINTS
from chargpt.run.resume import OVERRIDES, check_same, command_to_resume, load_state, may_replay, replayed, with_resume


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A run of 12 steps."""
    folder = tmp_path_factory.mktemp("whole")
    start(folder, *tiny, *QUIET, "model=gpt", "optimizer.schedule=cosine")
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    """The same, to change."""
    return shutil.copytree(whole, tmp_path / "outputs" / "run")


def add(run, *overrides):
    """Add to a run's stored overrides."""
    with (run / OVERRIDES).open("a", encoding="utf-8") as file:
        yaml.safe_dump(list(overrides), file)


# What may change


def test_settings_that_cannot_be_changed(whole):
    before, now = load_state(whole), read_config(resumed(whole, "data=file", "model=gpt"))
    check_same(before, now)
    model, data = now.model, now.data
    for changed in (
        replace(now, model=replace(model, n_layer=3)), replace(now, optimizer=replace(now.optimizer, lr=1.0)),
        replace(now, seed=3), replace(now, trainer=now.trainer | {"accumulate_grad_batches": 2}),
        *(replace(now, data=replace(data, **{key: value})) for key, value in {
            "seed": 7, "block_size": 8, "batch_size": 5, "split": [0.8, 0.2], "tokenizer": "bytes"}.items()),
        read_config(resumed(whole, "optimizer=muon")),
    ):  # fmt: skip
        with pytest.raises(UserError, match=r"cannot become .*last.ckpt was trained with"):
            check_same(before, changed)


def test_more_steps(copy, caplog):
    """A finished run has nothing to do; with more steps, its learning rate is that of the longer schedule."""
    caplog.set_level("INFO")
    config = copy / ".hydra" / "config.yaml"
    before = config.read_bytes()
    assert resume(copy) == pytest.approx(float(state(copy)["state_dict"]["best_val_loss.min_value"]))
    assert "is finished, 12 steps" in caplog.text
    harm = "+callbacks.harm={_target_: faults.Raise, step: 12, error: bug, when: on_train_start}"
    with pytest.raises(UserError, match="the run cannot begin: KeyError: 'a bug'"):
        resume(copy, "trainer.max_steps=24", harm)
    assert config.read_bytes() == before
    resume(copy, "trainer.max_steps=24")
    assert config.read_bytes() != before
    jumps = [record.message for record in caplog.records if "learning rate" in record.message]
    assert jumps[-1] == "The learning rate jumps from 3e-05 to 0.000156: its schedule is now that of 24 steps"
    assert dict(curves(copy)["lr"])[13] == pytest.approx(1.56e-4, rel=0.01)


def test_early_stopping(tiny, tmp_path):
    """`resume=allow` in a scheduler's loop does not train up to the next validation at each start. A new `patience`
    replaces the one in the callback's state."""
    early = "_target_: faults.Early, monitor: val/loss, min_delta: 100"
    line = [*tiny, *QUIET, f"+callbacks.early={{{early}, patience: 1}}", "trainer.max_steps=40"]
    for _ in range(2):
        done = run_script("train.py", *line, "resume=allow", f"hydra.run.dir={tmp_path}/run")
        assert state(tmp_path / "run")["global_step"] == 8
    assert "stopped early, after 8 steps" in done.stderr
    assert load_state(tmp_path / "run").stopped_early
    resume(tmp_path / "run", f"+callbacks.early={{{early}, patience: 3}}")
    assert state(tmp_path / "run")["global_step"] == 16


def test_the_chosen_precision_stays(tiny, tmp_path, monkeypatch, caplog):
    """Also on a machine that would choose another."""
    caplog.set_level("INFO")
    tiny = [each for each in tiny if "precision" not in each]
    monkeypatch.setattr(build, "best_precision", lambda device: Precision("bf16-mixed", f"for {device}"))
    start(tmp_path, *tiny, *QUIET, "trainer.max_steps=1")
    assert "parameters, on cpu in bf16-mixed (for cpu)\n" in caplog.text
    monkeypatch.setattr(build, "best_precision", lambda device: Precision("32-true", "another"))
    resume(tmp_path, "trainer.max_steps=2")
    assert "on cpu in bf16-mixed\n" in caplog.text
    resume(tmp_path, "trainer.max_steps=3", "trainer.precision=32-true")
    assert state(tmp_path)["hyper_parameters"]["scoring"]["precision"] == "32-true"


def test_another_number_of_devices_is_logged(copy, caplog):
    kept = state(copy)
    kept["random_states"] = [{"cpu": torch.get_rng_state()} for _ in range(2)]
    torch.save(kept, copy / "checkpoints" / "last.ckpt")
    resume(copy, "trainer.max_steps=13")
    assert "2 device(s) before, 1 now: batches and dropout will differ" in caplog.text


# Which run, and from which checkpoint


def test_a_damaged_last_checkpoint(whole, copy, caplog):
    """The one before is used, with a warning, and leads to the same end."""
    last = copy / "checkpoints" / "last.ckpt"
    content = last.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
    torch.save({"model": 1}, foreign := io.BytesIO())
    for damaged in (foreign.getvalue(), content[:middle], b"", flipped):
        last.write_bytes(damaged)
        caplog.clear()
        assert load_state(copy).step == 9
        assert f"Passing over {last}" in caplog.text
    resume(copy)
    assert_same(state(whole)["state_dict"], state(copy)["state_dict"])
    for name in CHECKPOINTS:
        (copy / name).write_bytes(b"")
    with pytest.raises(UserError, match="no usable checkpoint"):
        load_state(copy)


def test_auto_takes_the_newest_run(whole, tmp_path):
    outputs = tmp_path / "disk"
    with pytest.raises(UserError, match="resume=auto found no run"):
        with_resume(["resume=auto"], outputs)
    for n, name in enumerate(("older", "newer")):
        for file in (shutil.copytree(whole, outputs / name) / "checkpoints").iterdir():
            os.utime(file, (n + 1, n + 1))
    shutil.copytree(outputs / "newer", outputs / "sweeps" / "job")
    (outputs / "sweeps" / "job" / "job.json").touch()  # a sweep resumes its jobs
    (tmp_path / "outputs").symlink_to(outputs, target_is_directory=True)  # on another disk
    assert with_resume(["resume=auto"], tmp_path / "outputs")[-1] == f"hydra.run.dir='{outputs}/newer'"
    (outputs / "newer" / "train.log").symlink_to("/etc/hostname")
    with pytest.raises(UserError, match="a link that leads out of it"):
        with_resume(["resume=auto"], outputs)


def test_what_is_not_a_run(whole, tmp_path):
    for line, message in (
        ([f"resume={tmp_path}/none"], "none does not exist"),
        ([f"resume={tmp_path}"], "not the folder of a run"),
        ([f"resume={whole}", f"hydra.run.dir={tmp_path}"], "a run resumes in its own folder"),
        (["resume=5"], None),
        (["-m", f"resume={whole}"], "a sweep resumes by"),
        (["--multirun", "resume=allow"], r"a sweep resumes by resume=allow hydra\.sweep\.dir="),
        (["resume=allow"], r"resume=allow needs a folder: hydra\.run\.dir="),
        (["resume=allow", "hydra.run.dir=outputs/${now:%S}"], r"resume=allow needs a folder"),
    ):
        with pytest.raises(UserError, match=message):
            with_resume(line)
    (tmp_path / ".hydra").mkdir()
    (tmp_path / OVERRIDES).write_text("[]")
    with pytest.raises(UserError, match="ended before its first save"):
        load_state(tmp_path)


def test_names_of_folders(whole, tmp_path):
    """As they are typed: with quotes, with characters that Hydra interprets, like numbers."""
    folder = tmp_path / "0_a=1,b='2'c"
    shutil.copytree(whole, folder)
    place = "'" + str(folder).replace("'", "\\'") + "'"
    for way in (f"resume={folder}", f"+resume={folder}", f"resume={place}"):
        assert with_resume(["x=1", way])[-3:] == [f"resume={place}", f"hydra.run.dir={place}", "x=1"]
    home = Path("~").expanduser()
    assert with_resume(["hydra.run.dir='~/x'"]) == with_resume(["hydra.run.dir=~/x"]) == [f"hydra.run.dir='{home}/x'"]


# Overrides from strangers


HARMLESS = [
    "seed=2", "optimizer=muon", "data.batch_size=2", "optimizer.betas=[0.9,0.95]", "callbacks.throughput=null",
    "~callbacks.throughput", "trainer.limit_val_batches=2", "optimizer.schedule=linear", "trainer.precision=auto",
    "callbacks.text_samples.prompt='ROMEO: a/b'", "callbacks.surprise.prompt=ROMEO",
    "trainer.gradient_clip_val=0.9", "trainer.logger=false", "trainer.devices=auto", "+callbacks.x=null",
]  # fmt: skip
OTHERS = [
    "+callbacks.x._target_=os.mkdir", "callbacks.throughput._target_=os.mkdir", "++callbacks.x.path=was_here",
    "callbacks.throughput={_target_: os.mkdir, path: was_here}", "trainer.plugins=[{_target_: os.mkdir}]",
    "trainer.logger._target_=builtins.exec", "trainer.logger.save_dir=elsewhere", "trainer.logger.name=../..",
    "callbacks.last_checkpoint.dirpath=elsewhere", "trainer.default_root_dir=/etc", "trainer.profiler=simple",
    "model.n_layer=${oc.env:HOME}", "optimizer.schedule=${oc.env:HOME}", "optimizer.betas=['${oc.env:HOME}',1]",
    "model=../../train", "model@x=gpt", "hydra/launcher=joblib", "hydra.run.dir=/etc", "hydra.job.chdir=true",
    "seed=1,2", "seed=choice(1,2)", "colour=red", "trainer.max_time={minutes:5}",
    "+trainer.plugins=5", "data.seed=[[1]]", "callbacks.last_checkpoint.dirpath=auto",
]  # fmt: skip


@pytest.fixture(scope="module")
def base():
    return composed("data=file", "run_dir=x")


@pytest.mark.parametrize(("override", "replays"), [*((o, True) for o in HARMLESS), *((o, False) for o in OTHERS)])
def test_which_overrides_are_replayed(override, replays, base):
    [parsed] = OverridesParser.create().parse_overrides([override])
    assert may_replay(parsed, base) == replays


def test_the_others_have_to_be_typed_again(copy):
    """The message has the command, with what is typed now; null leaves an override out."""
    stop = signal_at(2)
    add(copy, *stop)
    command = ["python", "train.py", f"resume={copy}", "trainer.max_steps=7", *stop]
    assert command_to_resume(copy) == shlex.join([*command[:3], *stop])
    with pytest.raises(UserError) as no:
        resume(copy, "trainer.max_steps=7")
    assert shlex.join(command) in str(no.value)
    assert "\n" not in str(no.value)
    assert resumed(copy, *signal_at(3)).callbacks.stop == {"_target_": "faults.SignalAt", "steps": [3]}
    assert resumed(copy, "+callbacks.stop=null").callbacks.stop is None


def test_overrides_that_are_not_replayed(copy):
    """A typed key replaces also the keys below it, but not an option of a group: `data=file` keeps `data.batch_size`.
    Paths and ways to start are left out."""
    add(copy, "trainer.logger.version=3", "seed=1", "seed=2", "seed=1", "~callbacks.throughput")
    add(copy, "data.path=/etc/passwd", "data.val_path=/etc/passwd", "resume=/etc", "run_dir=/etc")
    kept = replayed(copy, ["data=file", "trainer.logger=false"])
    assert "data.batch_size=4" in kept
    assert [each for each in kept if each.startswith("seed=")] == ["seed=1", "seed=2", "seed=1"]
    assert "throughput" not in resumed(copy, "trainer.logger=false").callbacks
    assert "/etc" not in command_to_resume(copy) + str(kept)


def test_damaged_overrides(tmp_path, monkeypatch):
    """One line says so, and no YAML tag makes an object."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".hydra").mkdir()
    for text in ("x: !!python/object/apply:os.mkdir [was_here]\n", "x: [1\n", "5\n", "[1]\n", "", "\0"):
        (tmp_path / OVERRIDES).write_text(text)
        with pytest.raises(UserError, match="is damaged"):
            replayed(tmp_path, [])
    assert [each.name for each in tmp_path.iterdir()] == [".hydra"]


# On the command line


def test_by_hand(tiny_run, tmp_path):
    """Under a name that needs quotes, as a copy by hard links (`cp -al`, `rsync --link-dest`): more steps, a refused
    change, nothing left to do."""
    first = shutil.copytree(tiny_run, tmp_path / "first")
    folder = shutil.copytree(first, tmp_path / "it's 0_a=1,b=2 back\\slash$HOME 道", copy_function=os.link)
    done = run_script("train.py", f"resume={folder}", "trainer.max_steps=8")
    assert f"Run: {folder}, from step 6" in done.stderr
    assert (state(folder)["global_step"], state(first)["global_step"]) == (8, 6)
    done = run_script("train.py", f"resume={folder}", "model.n_head=1", status=2)
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: model.n_head cannot become 1")
    assert "is finished, 8 steps" in run_script("train.py", f"resume={folder}").stderr

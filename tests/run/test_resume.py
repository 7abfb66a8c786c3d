"""Resuming replays harmless overrides only, takes the right run and checkpoint, and refuses another run's settings."""

import os
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers import STEPS, assert_same, composed, curves, resume, resumed, run_script, signal_at, start, state
from hydra.core.override_parser.overrides_parser import OverridesParser

from chargpt.errors import Stopped, UserError
from chargpt.kernels.choice import Precision
from chargpt.run import build
from chargpt.run.config import read_config
from chargpt.run.resume import (
    OVERRIDES,
    check_same,
    command_to_resume,
    load_state,
    may_replay,
    read_overrides,
    replayed,
    with_resume,
)
from chargpt.sources import SOURCES, Text, UnavailableError

QUIET = [*STEPS, "callbacks.text_samples=null"]  # no samples, for speed


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A run of 12 steps."""
    folder = tmp_path_factory.mktemp("whole")
    start(folder, *tiny, *QUIET, "model=gpt")
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    """The same, to change."""
    return shutil.copytree(whole, tmp_path / "outputs" / "run")


def add(run, *overrides):
    """Add to a run's stored overrides."""
    (run / OVERRIDES).write_text(yaml.safe_dump([*read_overrides(run), *overrides]), encoding="utf-8")


# What may change


def test_settings_that_cannot_be_changed(whole):
    before = load_state(whole)
    for override in (
        "model.n_layer=3", "optimizer.lr=1", "seed=3", "trainer.accumulate_grad_batches=2", "data.batch_size=5",
        "data.seed=7", "data.block_size=8", "data.split=[0.8,0.2]", "data.tokenizer=bytes", "optimizer=muon",
    ):  # fmt: skip
        with pytest.raises(UserError, match=r"cannot be changed: .*last.ckpt was trained with"):
            check_same(before, read_config(resumed(whole, override)))
    check_same(before, read_config(resumed(whole, "model.n_layer=2", "seed=1337", "data=file", "model=gpt")))


def test_more_steps(tiny, tmp_path, copy, caplog):
    """A finished run that is extended is the run that had more steps from the start."""
    caplog.set_level("INFO")
    assert resume(copy) == pytest.approx(float(state(copy)["state_dict"]["best_val_loss.min_value"]))
    assert "is finished, 12 steps" in caplog.text
    resume(copy, "trainer.max_steps=16")
    assert "Changed: trainer.max_steps=16 (was 12)" in caplog.text
    start(tmp_path / "long", *tiny, *QUIET, "trainer.max_steps=16")
    assert_same(state(tmp_path / "long")["state_dict"], state(copy)["state_dict"])
    assert curves(tmp_path / "long") == curves(copy)


def test_a_change_that_fails_is_not_stored(copy):
    before = (copy / ".hydra" / "config.yaml").read_bytes()
    harm = "+callbacks.harm={_target_: faults.Raise, step: 12, error: bug, when: on_train_start}"
    with pytest.raises(UserError, match="the run cannot begin: KeyError: 'a bug'"):
        resume(copy, "trainer.max_steps=14", harm)
    assert (copy / ".hydra" / "config.yaml").read_bytes() == before
    resume(copy, "trainer.max_steps=14")
    assert (copy / ".hydra" / "config.yaml").read_bytes() != before


def test_the_learning_rate_of_a_longer_schedule(tiny, tmp_path, caplog):
    caplog.set_level("INFO")
    start(tmp_path, *tiny, *QUIET, "optimizer.schedule=cosine")
    resume(tmp_path, "trainer.max_steps=24")
    [message] = [record.message for record in caplog.records if "learning rate" in record.message]
    assert message == "The learning rate jumps from 3e-05 to 0.000156: its cosine schedule is now that of 24 steps"
    assert dict(curves(tmp_path)["lr"])[13] == pytest.approx(1.56e-4, rel=0.01)


def test_a_new_argument_replaces_the_one_in_a_callbacks_state(tiny, tmp_path):
    """Lightning restores `patience` with the state of EarlyStopping."""
    early = {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "val/loss", "min_delta": 100}
    early = [f"+callbacks.early.{key}={value}" for key, value in early.items()]
    start(tmp_path, *tiny, *QUIET, "trainer.max_steps=40", *early, "+callbacks.early.patience=1")
    assert state(tmp_path)["global_step"] == 8
    assert load_state(tmp_path).stopped_early
    resume(tmp_path, *early, "+callbacks.early.patience=3")
    assert state(tmp_path)["global_step"] == 16


def test_the_chosen_precision_stays(tiny, tmp_path, monkeypatch, caplog):
    """Also on a machine that would choose another."""
    caplog.set_level("INFO")
    tiny = [each for each in tiny if "precision" not in each]
    monkeypatch.setattr(build, "best_precision", lambda device: Precision("bf16-mixed", "one reason"))
    start(tmp_path, *tiny)
    assert "parameters, on cpu in bf16-mixed (one reason)\n" in caplog.text
    monkeypatch.setattr(build, "best_precision", lambda device: Precision("32-true", "another"))
    resume(tmp_path, "trainer.max_steps=8")
    assert "on cpu in bf16-mixed (the fastest here is 32-true: another)\n" in caplog.text
    resume(tmp_path, "trainer.max_steps=9", "trainer.precision=32-true")
    assert state(tmp_path)["hyper_parameters"]["scoring"]["precision"] == "32-true"


def test_the_text_stays(tiny, text_file, tmp_path):
    """It comes from the cache; a file with another text is refused."""
    text = tmp_path / "text.txt"
    text.write_text(text_file.read_text(encoding="utf-8"), encoding="utf-8")
    start(tmp_path / "run", *tiny, *QUIET, f"data.path={text}")
    text.write_text(text_file.read_text(encoding="utf-8") + "!", encoding="utf-8")
    with pytest.raises(UserError, match=r"is not the text that the run began with|another text"):
        resume(tmp_path / "run", "trainer.max_steps=14", f"data.path={text}")
    resume(tmp_path / "run", "trainer.max_steps=14")


def test_the_fallback_text_stays(tiny, tmp_path, monkeypatch):
    """Also once the text that was asked for is available."""

    def unavailable(path):
        raise UnavailableError("no network")

    monkeypatch.setitem(SOURCES, "shakespeare", unavailable)
    asked = ["data=shakespeare", "data.fallback=file"]
    with pytest.raises(Stopped):
        start(tmp_path, *(each for each in tiny if each != "data=file"), *asked, *signal_at(2))
    monkeypatch.setitem(SOURCES, "shakespeare", lambda path: Text("a better text", []))
    resume(tmp_path, "+callbacks.stop=null")
    assert state(tmp_path)["global_step"] == 6


def test_another_number_of_devices_is_logged(copy, caplog):
    kept = state(copy)
    kept["random_states"] = [{"cpu": torch.get_rng_state()} for _ in range(2)]
    torch.save(kept, copy / "checkpoints" / "last.ckpt")
    resume(copy, "trainer.max_steps=14")
    assert "This run had 2 devices and resumes with 1: from here on" in caplog.text


# Which run, and from which checkpoint


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "foreign"])
def test_a_damaged_last_checkpoint(damage, whole, copy, caplog):
    """The one before is used, with a warning, and leads to the same end."""
    last = copy / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    if damage == "foreign":
        torch.save({"model": 1}, last)
    elif damage == "flip":
        content[len(content) // 2] ^= 4
        last.write_bytes(content)
    else:
        last.write_bytes(content[: len(content) // 2] if damage == "truncate" else b"")
    assert load_state(copy).step == 9
    assert "Passing over" in caplog.text
    assert "last.ckpt" in caplog.text
    if damage == "flip":
        resume(copy)
        assert_same(state(whole)["state_dict"], state(copy)["state_dict"])


def test_auto_takes_the_newest_run_that_can_resume(whole, tmp_path, caplog):
    outputs = tmp_path / "disk"
    with pytest.raises(UserError, match="resume=auto found no run"):
        with_resume(["resume=auto"], outputs)
    for n, name in enumerate(("old", "finished", "broken", "foreign", "linked", "emptied")):
        run = shutil.copytree(whole, outputs / name)
        if name == "foreign":
            add(run, "+callbacks.x._target_=os.mkdir")
        if name == "linked":
            (run / "train.log").symlink_to("/etc/hostname")
        if name == "emptied":
            (run / OVERRIDES).write_text("[]")
        if name == "old":
            add(run, "trainer.max_steps=16")
        for file in (run / "checkpoints").iterdir():
            if name == "broken":
                file.write_bytes(b"nothing")
            os.utime(file, (n + 1, n + 1))
    (tmp_path / "outputs").symlink_to(outputs, target_is_directory=True)  # on another disk
    assert with_resume(["resume=auto"], tmp_path / "outputs")[-1] == f"hydra.run.dir='{outputs}/old'"
    passed = [record.message for record in caplog.records if record.message.startswith("Passing over")]
    for name, why in (
        ("emptied", "was trained with"),
        ("linked", "a link that leads out of it"),
        ("foreign", "os.mkdir"),
        ("broken", "no usable checkpoint"),
        ("finished", "has finished its 12 steps"),
    ):
        assert sum(f"{name}: " in line and why in line for line in passed) == 1, name
    assert f"hydra.run.dir='{outputs}/finished'" in with_resume(["resume=auto", "trainer.max_steps=20"], outputs)


def test_what_is_not_a_run(whole, tmp_path):
    for line, message in (
        ([f"resume={tmp_path}/none"], r"there is no folder .*none"),
        ([f"resume={whole}/checkpoints"], rf"not the folder of a run; did you mean resume={whole}\?"),
        ([f"resume={tmp_path}"], "not the folder of a run"),
        ([f"resume={whole}", f"hydra.run.dir={tmp_path}"], "a run resumes in its own folder"),
        ([f"resume={whole}", "init_from=x"], "they exclude each other"),
        (["resume=5"], None),
        (["-m", f"resume={whole}"], "a sweep resumes by"),
        (["--multirun", "resume=allow"], "a sweep resumes by"),
        (["resume=allow"], r"resume=allow needs a folder .*: hydra\.run\.dir="),
        (["resume=allow", "hydra.run.dir=outputs/${now:%S}"], r"resume=allow needs a folder"),
    ):
        with pytest.raises(UserError, match=message):
            with_resume(line)
    (tmp_path / ".hydra").mkdir()
    (tmp_path / OVERRIDES).write_text("[]")
    with pytest.raises(UserError, match="ended before its first save"):
        load_state(tmp_path)


def test_allow_begins_a_run_or_resumes_it(whole, tmp_path):
    """One command line for the first and every later start."""
    line = ["resume=allow", "model=gpt", f"hydra.run.dir={tmp_path}/run", "trainer.max_steps=16"]
    assert with_resume(line) == ["resume='allow'", line[1], f"hydra.run.dir='{tmp_path}/run'", line[3]]
    shutil.copytree(whole, tmp_path / "run")
    resumed = with_resume(line)
    assert {"resume=allow", f"hydra.run.dir='{tmp_path}/run'"} < set(resumed)
    assert resumed.index("data=file") < resumed.index("trainer.max_steps=16")
    assert not any(each.startswith("data.path") for each in resumed)


def test_names_of_folders(whole, tmp_path):
    """As they are typed: with quotes, with characters that Hydra interprets, like numbers."""
    folder = tmp_path / "0_a=1,b='2'c"
    shutil.copytree(whole, folder)
    place = "'" + str(folder).replace("'", "\\'") + "'"
    for way in (f"resume={folder}", f"+resume={folder}", f"resume={place}"):
        assert with_resume(["x=1", way])[-3:] == [f"resume={place}", f"hydra.run.dir={place}", "x=1"]
    for name in ("2026_01_31", "12e4567", "1.10"):
        assert with_resume([f"hydra.run.dir={name}", f"data.path={name}"]) == [
            f"hydra.run.dir='{name}'", f"data.path='{name}'"
        ]  # fmt: skip
    home = Path("~").expanduser()
    assert with_resume(["hydra.run.dir='~/x'"]) == with_resume(["hydra.run.dir=~/x"]) == [f"hydra.run.dir='{home}/x'"]


# Overrides from strangers


HARMLESS = [
    "seed=2", "optimizer=muon", "data.num_workers=2", "optimizer.betas=[0.9,0.95]", "callbacks.throughput=null",
    "~callbacks.throughput", "trainer.limit_val_batches=2", "optimizer.schedule=linear", "trainer.precision=auto",
    "callbacks.text_samples.prompt='ROMEO: a/b'", "callbacks.surprise.prompt=ROMEO",
    "callbacks.averaging.decay=0.9", "trainer.logger=false", "trainer.devices=auto", "+callbacks.x=null",
]  # fmt: skip
OTHERS = [
    "+callbacks.x._target_=os.mkdir", "callbacks.throughput._target_=os.mkdir", "++callbacks.x.path=was_here",
    "callbacks.throughput={_target_: os.mkdir, path: was_here}", "trainer.plugins=[{_target_: os.mkdir}]",
    "trainer.logger._target_=builtins.exec", "trainer.logger.save_dir=elsewhere", "trainer.logger.name=../..",
    "callbacks.last_checkpoint.dirpath=elsewhere", "trainer.default_root_dir=/etc", "trainer.profiler=simple",
    "model.n_layer=${oc.env:HOME}", "data.fallback=${oc.env:HOME}", "optimizer.betas=['${oc.env:HOME}',1]",
    "model=../../train", "model@x=gpt", "hydra/launcher=joblib", "hydra.run.dir=/etc", "hydra.job.chdir=true",
    "~model.n_layer", "seed=1,2", "seed=choice(1,2)", "colour=red", "trainer.max_time={minutes:5}", "~callbacks",
    "callbacks=5", "trainer=5", "data.seed=[[1]]",
]  # fmt: skip


@pytest.fixture(scope="module")
def base():
    return composed("data=file", "run_dir=x")


@pytest.mark.parametrize(("override", "replays"), [*((o, True) for o in HARMLESS), *((o, False) for o in OTHERS)])
def test_which_overrides_are_replayed(override, replays, base):
    [parsed] = OverridesParser.create().parse_overrides([override])
    assert may_replay(parsed, base) == replays


def test_the_others_have_to_be_typed_again(tiny, tmp_path, caplog):
    """The message has the command, which works; null leaves an override out."""
    with pytest.raises(Stopped):
        start(tmp_path, *tiny, *signal_at(2))
    command = ["python", "train.py", f"resume={tmp_path}", *signal_at(2)]
    assert f"To resume: {shlex.join(command)}" in caplog.text
    with pytest.raises(UserError) as no:
        resume(tmp_path)
    assert shlex.join(command) in str(no.value)
    assert "\n" not in str(no.value)
    with pytest.raises(UserError) as no:  # the command has what is typed now, too
        resume(tmp_path, "trainer.max_steps=7")
    assert shlex.join([*command[:3], "trainer.max_steps=7", *signal_at(2)]) in str(no.value)
    again = signal_at(3)
    assert resumed(tmp_path, *again).callbacks.stop == {"_target_": "faults.SignalAt", "steps": [3]}
    assert resumed(tmp_path, "+callbacks.stop=null").callbacks.stop is None


def test_typed_overrides_replace_stored_ones(copy):
    """A key also replaces the keys below it, but an option of a group does not: `data=file` keeps `data.batch_size`."""
    add(copy, "trainer.logger.version=3", "seed=1", "seed=2", "seed=1", "~callbacks.throughput")
    kept = replayed(copy, ["data=file", "data.path=x", "trainer.logger=false"])
    assert "data.batch_size=4" in kept
    assert [each for each in kept if each.startswith("seed=")] == ["seed=1", "seed=2", "seed=1"]
    assert "throughput" not in resumed(copy, "trainer.logger=false").callbacks


def test_paths_and_starts_are_not_replayed(copy):
    add(copy, "data.path=/etc/passwd", "data.val_path=/etc/passwd", "resume=/etc", "run_dir=/etc")
    assert not any("/etc" in each for each in replayed(copy, []))
    assert "/etc" not in command_to_resume(copy)


@pytest.mark.parametrize(
    "text", ["x: !!python/object/apply:os.mkdir [was_here]\n", "x: [1\n", "5\n", "[1]\n", "", "\0"]
)
def test_damaged_overrides(text, copy, monkeypatch):
    """One line says so, and no YAML tag makes an object."""
    monkeypatch.chdir(copy.parent)
    (copy / OVERRIDES).write_text(text)
    with pytest.raises(UserError, match="is damaged"):
        resume(copy, "trainer.max_steps=14")
    assert [each.name for each in copy.parent.iterdir()] == ["run"]


# On the command line


@pytest.mark.parametrize("name", ["0_a=1,b=2 c", "back\\slash$HOME", "it's 道"])
def test_by_hand(name, tiny_run, tmp_path):
    """A copy under a name that needs quotes: more steps, a change that is refused, nothing left to do."""
    folder = shutil.copytree(tiny_run, tmp_path / name)
    done = run_script("train.py", f"resume={folder}", "trainer.max_steps=8")
    assert done.returncode == 0, done.stderr
    assert f"Run: {folder}, from step 6" in done.stderr
    assert state(folder)["global_step"] == 8
    done = run_script("train.py", f"resume={folder}", "model.n_head=1")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: model.n_head=1 cannot be changed")
    done = run_script("train.py", f"resume={folder}")
    assert done.returncode == 0
    assert "is finished, 8 steps" in done.stderr


def test_options_of_a_config_dir_and_several_loggers(tiny, tmp_path):
    """The printed command has them, and works."""
    (tmp_path / "my" / "experiment").mkdir(parents=True)
    (tmp_path / "my" / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 5\n")
    csv = f"_target_: lightning.pytorch.loggers.CSVLogger, save_dir: {tmp_path}/csv"
    loggers = f"trainer.logger=[{{{csv}}}, {{_target_: lightning.pytorch.loggers.TensorBoardLogger, save_dir: .}}]"
    line = ["--config-dir", f"{tmp_path}/my", "experiment=mine", *tiny, loggers, *signal_at(2)]
    done = run_script("train.py", *line, f"hydra.run.dir={tmp_path}/run", cwd=tmp_path)
    assert done.returncode == 143, done.stderr
    command = shlex.split(done.stderr.partition("To resume: ")[2])
    assert command[2:7] == ["--config-dir", f"{tmp_path}/my", "resume=run", "experiment=mine", loggers]
    done = run_script("train.py", *command[2:7], "+callbacks.stop=null", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_early_stopping_ends_a_schedulers_loop(tiny, tmp_path):
    """`resume=allow` does not train up to the next validation at each start."""
    early = "_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss, min_delta: 100, patience: 1"
    early = f"+callbacks.early={{{early}}}"
    line = [*tiny, *QUIET, early, "trainer.max_steps=40", "resume=allow", f"hydra.run.dir={tmp_path}/run"]
    for _ in range(2):
        done = run_script("train.py", *line)
        assert done.returncode == 0, done.stderr
        assert state(tmp_path / "run")["global_step"] == 8
    assert "stopped early, after 8 steps" in done.stderr


def test_a_run_with_hard_links(whole, tmp_path):
    """As `cp -al` or `rsync --link-dest` make it: both resume."""
    shutil.copytree(whole, tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two", copy_function=os.link)
    for name in ("one", "two"):
        resume(tmp_path / name, "trainer.max_steps=13")
        assert state(tmp_path / name)["global_step"] == 13

"""A resumed run ends as if nothing had interrupted it, and nothing harmful is read from a run's folder."""

import os
import random
import shlex
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from helpers import (
    STEPS,
    assert_same,
    curves,
    resume,
    resumed,
    run_script,
    signal_at,
    start,
    state,
)

from chargpt.errors import Stopped, UserError
from chargpt.kernels.choice import Precision
from chargpt.run import build
from chargpt.run.resume import OVERRIDES, command_to_resume, load_state, read_overrides, replayed, with_resume
from chargpt.sources import SOURCES, Text, UnavailableError

STATE = ("state_dict", "optimizer_states", "lr_schedulers", "random_states", "global_step", "epoch")
QUIET = [*STEPS, "callbacks.text_samples=null"]  # no samples, for speed


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A run of 12 steps that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    start(folder, *tiny, *QUIET, "model=gpt")
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    """The same, to change."""
    return shutil.copytree(whole, tmp_path / "outputs" / "run")


def stops(folder, at, *overrides):
    """Start a run and resume it after each signal; the number of times it took."""
    with pytest.raises(SystemExit) as end:
        start(folder, *overrides, *signal_at(*at))
    assert end.value.code == 143
    rounds = 2
    while left := [step for step in at if step >= load_state(folder).step]:
        with pytest.raises(SystemExit) as end:
            resume(folder, *signal_at(*left))
        assert end.value.code == 143
        rounds += 1
    resume(folder, "+callbacks.stop=null")
    return rounds


def assert_same_end(one, other):
    a, b = state(one), state(other)
    for key in [*STATE, *(a.keys() & {"current_model_state", "averaging_state"})]:
        assert_same(a[key], b[key], key)
    assert curves(one) == curves(other)
    best = [torch.load(f / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"] for f in (one, other)]
    assert_same(*best)


SETTINGS = {
    "plain": [],
    "accumulation": ["trainer.accumulate_grad_batches=3"],
    "workers": ["data.num_workers=2"],
    "cosine": ["optimizer.schedule=cosine", "optimizer.warmup_steps=3", "trainer.gradient_clip_val=0.5"],
    "bf16": ["trainer.precision=bf16-mixed"],
    "muon": ["optimizer=muon", "optimizer.warmup_steps=2", "trainer.gradient_clip_val=0.5"],
    "averaging": ["optimizer=muon", "callbacks.averaging.decay=0.3", "trainer.accumulate_grad_batches=2"],
}


@pytest.mark.parametrize("name", SETTINGS)
def test_interrupted_is_bitwise_the_same(name, tiny, tmp_path, whole):
    """Stopped after several steps, the one before a validation and the one after included."""
    once, often = tmp_path / "once", tmp_path / "often"
    best = start(once, *tiny, *QUIET, *SETTINGS[name]) if name != "plain" else shutil.copytree(whole, once) and None
    assert stops(often, [0, 2, 3, 4, 8, 10], *tiny, *QUIET, *SETTINGS[name]) == 7
    assert_same_end(once, often)
    if best is not None:
        assert best == state(often)["state_dict"]["best_val_loss.min_value"]


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
def test_the_order_of_callbacks_does_not_matter(order, tiny, tmp_path, whole, monkeypatch):
    """Interrupted, with text samples, and another order of the configuration's callbacks at every start."""
    chance, real = random.Random(1), build.build_callbacks
    orders = []

    def in_another_order(configs):
        names = list(configs)[::-1] if order == "reversed" else chance.sample(list(configs), len(configs))
        orders.append(names)
        return real({name: configs[name] for name in names})

    monkeypatch.setattr(build, "build_callbacks", in_another_order)
    assert stops(tmp_path, [0, 3, 7], *tiny, *STEPS) == 4
    assert_same_end(whole, tmp_path)
    assert len(set(map(tuple, orders))) == (1 if order == "reversed" else 4)


def test_stopped_in_validation(tiny, tmp_path, whole):
    with pytest.raises(Stopped) as stop:
        start(tmp_path, *tiny, *QUIET, *signal_at(4, when="on_validation_batch_start"))
    assert (stop.value.code, stop.value.step, load_state(tmp_path).step) == (143, 4, 4)
    resume(tmp_path, "+callbacks.stop=null")
    assert_same_end(whole, tmp_path)


def test_extended(tiny, tmp_path, copy, caplog):
    """With more steps, a finished run is the run that had them from the start."""
    caplog.set_level("INFO")
    assert resume(copy) == pytest.approx(float(state(copy)["state_dict"]["best_val_loss.min_value"]))
    assert "is finished, 12 steps" in caplog.text
    resume(copy, "trainer.max_steps=16")
    assert "Changed: trainer.max_steps=16 (was 12)" in caplog.text
    start(tmp_path / "long", *tiny, *QUIET, "trainer.max_steps=16")
    assert_same(state(tmp_path / "long")["state_dict"], state(copy)["state_dict"])
    assert curves(tmp_path / "long") == curves(copy)


def test_the_best_so_far_is_the_lowest(tiny, tmp_path):
    """A learning rate so high that the loss goes up and down."""
    best = start(tmp_path, *tiny, *QUIET, "optimizer.lr=2", "trainer.val_check_interval=1")
    values, bests = (list(dict(curves(tmp_path)[tag]).values()) for tag in ("val/loss", "val/best_loss"))
    assert values != sorted(values, reverse=True)
    assert bests == [min(values[: n + 1]) for n in range(len(values))]
    assert best == min(values)


def test_moved_folder_keeps_its_best(tiny, tmp_path):
    start(tmp_path / "a", *tiny, *QUIET, "optimizer.lr=2")  # diverges soon
    shutil.move(tmp_path / "a", tmp_path / "b")
    best = (tmp_path / "b" / "checkpoints" / "best.ckpt").read_bytes()
    score = float(state(tmp_path / "b")["state_dict"]["best_val_loss.min_value"])
    assert resume(tmp_path / "b", "trainer.max_steps=14") == pytest.approx(score)
    assert (tmp_path / "b" / "checkpoints" / "best.ckpt").read_bytes() == best
    assert not (tmp_path / "a").exists()


# What may be typed when a run resumes


@pytest.mark.parametrize(
    "override",
    [
        "model.n_layer=3", "optimizer.lr=1", "seed=3", "trainer.accumulate_grad_batches=2", "data.batch_size=5",
        "data.seed=7", "data.block_size=8", "data.split=[0.8,0.2]", "data.tokenizer=bytes", "optimizer=muon",
    ],
)  # fmt: skip
def test_what_cannot_be_changed(whole, override):
    with pytest.raises(UserError, match=r"(cannot be changed|was trained with)"):
        resume(whole, override)


def test_what_stays_the_same_may_be_typed(whole):
    assert resumed(whole, "model.n_layer=2", "seed=1337", "data=file", "model=gpt").model.n_layer == 2


def test_a_typed_option_keeps_stored_values(copy):
    """As after "the text is no longer in the cache": data=file data.path=my.txt; other keys drop what is below them."""
    add(copy, "trainer.logger.version=3", "seed=1", "seed=2", "seed=1")
    kept = replayed(copy, ["data=file", "data.path=x", "trainer.logger=false"])
    assert "data.batch_size=4" in kept
    assert [each for each in kept if each.startswith("seed=")] == ["seed=1", "seed=2", "seed=1"]


def test_a_callback_can_be_left_out(whole):
    assert "throughput" in resumed(whole).callbacks
    assert "throughput" not in resumed(whole, "~callbacks.throughput").callbacks
    assert resumed(whole, "callbacks.throughput=null").callbacks.throughput is None


def test_what_adds_a_class_has_to_be_typed_again(tiny, tmp_path, caplog):
    """The message has the command, which works; null leaves it out."""
    with pytest.raises(Stopped):
        start(tmp_path, *tiny, *signal_at(2))
    command = ["python", "train.py", f"resume={tmp_path}", *signal_at(2)]
    assert f"To resume: {shlex.join(command)}" in caplog.text
    with pytest.raises(UserError) as no:
        resume(tmp_path)
    assert shlex.join(command) in str(no.value)
    assert "\n" not in str(no.value)
    with pytest.raises(UserError) as no:  # what is typed now is in the command, too
        resume(tmp_path, "trainer.max_steps=7")
    assert shlex.join([*command[:3], "trainer.max_steps=7", *signal_at(2)]) in str(no.value)
    again = signal_at(3)
    assert resumed(tmp_path, *again).callbacks.stop == {"_target_": "faults.SignalAt", "steps": [3]}
    assert resumed(tmp_path, "+callbacks.stop=null").callbacks.stop is None


def test_a_new_argument_of_a_callback_holds_although_it_is_in_its_state(tiny, tmp_path):
    """Lightning restores `patience` with the state of EarlyStopping."""
    early = {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "val/loss", "min_delta": 100}
    early = [f"+callbacks.early.{key}={value}" for key, value in early.items()]
    steps = [*QUIET, "trainer.max_steps=40"]
    start(tmp_path, *tiny, *steps, *early, "+callbacks.early.patience=1")
    assert state(tmp_path)["global_step"] == 8
    assert load_state(tmp_path).stopped_early
    resume(tmp_path, *early, "+callbacks.early.patience=3")
    assert state(tmp_path)["global_step"] == 16


def test_the_precision_that_was_chosen_stays(tiny, tmp_path, monkeypatch, caplog):
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


def test_changed_text(tiny, text_file, tmp_path):
    """A run resumes with the text that it began with, from the cache; a file with another text is refused."""
    text = tmp_path / "text.txt"
    text.write_text(text_file.read_text(encoding="utf-8"), encoding="utf-8")
    start(tmp_path / "run", *tiny, *QUIET, f"data.path={text}")
    text.write_text(text_file.read_text(encoding="utf-8") + "!", encoding="utf-8")
    with pytest.raises(UserError, match=r"is not the text that the run began with|another text"):
        resume(tmp_path / "run", "trainer.max_steps=14", f"data.path={text}")
    resume(tmp_path / "run", "trainer.max_steps=14")


# Which run, and from which checkpoint


@pytest.mark.parametrize("harm", ["truncate", "flip", "empty", "foreign"])
def test_damaged_last_checkpoint(harm, whole, copy, caplog):
    """The one before is taken, with a warning, and leads to the same end."""
    last = copy / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    if harm == "truncate":
        content = content[: len(content) // 2]
    elif harm == "flip":
        content[len(content) // 2] ^= 4
    elif harm == "empty":
        content = b""
    if harm == "foreign":
        torch.save({"model": 1}, last)
    else:
        last.write_bytes(content)
    assert load_state(copy).step == 9
    assert "Passing over" in caplog.text
    assert "last.ckpt" in caplog.text
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
    with pytest.raises(UserError, match=r"there is no folder .*none"):
        with_resume([f"resume={tmp_path}/none"])
    with pytest.raises(UserError, match=rf"not the folder of a run; did you mean resume={whole}\?"):
        with_resume([f"resume={whole}/checkpoints"])
    with pytest.raises(UserError, match="not the folder of a run"):
        with_resume([f"resume={tmp_path}"])
    with pytest.raises(UserError, match="a run resumes in its own folder"):
        with_resume([f"resume={whole}", f"hydra.run.dir={tmp_path}"])
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
    for folder in ([], ["hydra.run.dir=outputs/${now:%S}"]):
        with pytest.raises(UserError, match=r"resume=allow needs a folder .*: hydra\.run\.dir="):
            with_resume(["resume=allow", *folder])


def test_names_of_folders(whole, tmp_path):
    """As they are typed: with quotes, signs that Hydra reads otherwise, like numbers."""
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
    for flag in ("-m", "--multirun"):
        with pytest.raises(UserError, match="a sweep resumes by its own command"):
            with_resume([flag, f"resume={folder}"])


# Overrides from strangers


def add(run, *overrides):
    """Add to a run's stored overrides."""
    (run / OVERRIDES).write_text(yaml.safe_dump([*read_overrides(run), *overrides]), encoding="utf-8")


@pytest.mark.parametrize(
    "override",
    [
        "seed=2", "optimizer=muon", "data.num_workers=2", "optimizer.betas=[0.9,0.95]", "callbacks.throughput=null",
        "~callbacks.throughput", "trainer.limit_val_batches=2", "optimizer.schedule=linear", "trainer.precision=auto",
        "callbacks.text_samples.prompt='ROMEO: a/b'", "callbacks.surprise.prompt=ROMEO",
        "callbacks.averaging.decay=0.9", "trainer.logger=false", "trainer.devices=auto", "+callbacks.x=null",
    ],
)  # fmt: skip
def test_harmless_overrides_are_replayed(override, copy):
    add(copy, override)
    assert override in replayed(copy, [])


@pytest.mark.parametrize(
    "override",
    [
        "+callbacks.x._target_=os.mkdir", "callbacks.throughput._target_=os.mkdir", "++callbacks.x.path=was_here",
        "callbacks.throughput={_target_: os.mkdir, path: was_here}", "trainer.plugins=[{_target_: os.mkdir}]",
        "trainer.logger._target_=builtins.exec", "trainer.logger.save_dir=elsewhere", "trainer.logger.name=../..",
        "callbacks.last_checkpoint.dirpath=elsewhere", "trainer.default_root_dir=/etc", "trainer.profiler=simple",
        "model.n_layer=${oc.env:HOME}", "data.fallback=${oc.env:HOME}", "optimizer.betas=['${oc.env:HOME}',1]",
        "model=../../train", "model@x=gpt", "hydra/launcher=joblib", "hydra.run.dir=/etc", "hydra.job.chdir=true",
        "~model.n_layer", "seed=1,2", "seed=choice(1,2)", "colour=red", "trainer.max_time={minutes:5}", "~callbacks",
        "callbacks=5", "trainer=5", "data.seed=[[1]]",
    ],
)  # fmt: skip
def test_other_overrides_have_to_be_typed_again(override, copy, monkeypatch):
    """In one line, and nothing of them runs."""
    monkeypatch.chdir(copy.parent)
    add(copy, override)
    with pytest.raises(UserError) as no:
        resume(copy, "trainer.max_steps=14")
    assert "\n" not in str(no.value)
    assert override.split("=")[0] in str(no.value)
    assert [file.name for file in copy.parent.iterdir()] == ["run"]
    assert state(copy)["global_step"] == 12


def test_paths_and_starts_are_not_replayed(copy):
    add(copy, "data.path=/etc/passwd", "data.val_path=/etc/passwd", "resume=/etc", "run_dir=/etc")
    assert not any("/etc" in each for each in replayed(copy, []))
    assert "/etc" not in command_to_resume(copy)


@pytest.mark.parametrize(
    "text", ["x: !!python/object/apply:os.mkdir [was_here]\n", "x: [1\n", "5\n", "[1]\n", "", "\0"]
)
def test_damaged_overrides(text, copy, monkeypatch):
    """One line says so; YAML that makes objects makes none."""
    monkeypatch.chdir(copy.parent)
    (copy / OVERRIDES).write_text(text)
    with pytest.raises(UserError, match="is damaged"):
        resume(copy, "trainer.max_steps=14")
    assert [each.name for each in copy.parent.iterdir()] == ["run"]


def test_by_hand(tiny, tmp_path):
    """As typed: a run, then resume= with more steps, in a folder whose name needs quotes."""
    folder = tmp_path / "0_a=1,b=2"
    done = run_script("train.py", *tiny, f"hydra.run.dir='{folder}'")
    assert done.returncode == 0, done.stderr
    done = run_script("train.py", f"resume={folder}", "trainer.max_steps=9")
    assert done.returncode == 0, done.stderr
    assert "Changed: trainer.max_steps=9 (was 6)" in done.stderr
    assert f"Run: {folder}, from step 6" in done.stderr
    assert len(list(folder.glob(".hydra/*"))) == 3
    done = run_script("train.py", f"resume={folder}", "model.n_head=1")
    assert done.returncode == 2
    assert done.stderr.startswith("error: model.n_head=1 cannot be changed")
    assert done.stderr.count("\n") == 1
    done = run_script("train.py", f"resume={folder}")
    assert done.returncode == 0
    assert "is finished, 9 steps" in done.stderr


def test_options_of_a_config_dir(tiny, tmp_path):
    """The command that is printed for resuming has it, and works."""
    (tmp_path / "my" / "experiment").mkdir(parents=True)
    (tmp_path / "my" / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 5\n")
    line = ["--config-dir", f"{tmp_path}/my", "experiment=mine", *tiny, *signal_at(2), f"hydra.run.dir={tmp_path}/run"]
    done = run_script("train.py", *line)
    assert done.returncode == 143, done.stderr
    command = shlex.split(done.stderr.partition("To resume: ")[2])
    assert command[2:6] == ["--config-dir", f"{tmp_path}/my", f"resume={tmp_path}/run", "experiment=mine"]
    done = run_script("train.py", *command[2:6], "+callbacks.stop=null")
    assert done.returncode == 0, done.stderr


def test_a_run_with_hard_links(whole, tmp_path):
    """As `cp -al` or `rsync --link-dest` make it: both resume."""
    shutil.copytree(whole, tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two", copy_function=os.link)
    for name in ("one", "two"):
        resume(tmp_path / name, "trainer.max_steps=13")
        assert state(tmp_path / name)["global_step"] == 13


def test_early_stopping_ends_a_schedulers_loop(tiny, tmp_path):
    """`resume=allow` does not train one validation interval more at each start."""
    early = "_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/loss, min_delta: 100, patience: 1"
    early = f"+callbacks.early={{{early}}}"
    line = [*tiny, *QUIET, early, "trainer.max_steps=40", "resume=allow", f"hydra.run.dir={tmp_path}/run"]
    for _ in range(2):
        done = run_script("train.py", *line)
        assert done.returncode == 0, done.stderr
        assert state(tmp_path / "run")["global_step"] == 8
    assert "stopped early, after 8 steps" in done.stderr


def test_a_run_that_fell_back_goes_on_with_that_text(tiny, text_file, tmp_path, monkeypatch):
    """Also once the text that was asked for can be had."""

    def none(path):
        raise UnavailableError("it is not here")

    monkeypatch.setitem(SOURCES, "shakespeare", none)
    asked = ["data=shakespeare", "data.fallback=file"]
    with pytest.raises(Stopped):
        start(tmp_path, *(each for each in tiny if each != "data=file"), *asked, *signal_at(2))
    monkeypatch.setitem(SOURCES, "shakespeare", lambda path: Text("a better text", []))
    resume(tmp_path, "+callbacks.stop=null")
    assert state(tmp_path)["global_step"] == 6

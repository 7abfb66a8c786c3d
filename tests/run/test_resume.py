"""Going on with a run: it ends as if nothing had interrupted it, and takes no orders from a stranger's folder."""

import os
import random
import re
import shlex
import shutil
import time
from pathlib import Path

import pytest
import torch
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
from hydra.errors import HydraException
from omegaconf import OmegaConf

from chargpt.errors import Stopped, UserError
from chargpt.kernels.choice import Precision
from chargpt.run import build
from chargpt.run.resume import load_state, point_to_run
from chargpt.run.stored import choices_of
from chargpt.sources import SOURCES, Text, UnavailableError
from train import train

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
    """Start a run and go on with it after each signal; the number of times it took."""
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


def test_random_numbers_of_old_checkpoints(tiny, tmp_path, whole):
    """Before 2026-12 a checkpoint had one state, in the care of LastCheckpoint, and classes lay elsewhere."""
    with pytest.raises(Stopped):
        start(tmp_path, *tiny, *QUIET, *signal_at(6))
    old = state(tmp_path)
    (random_state,) = old.pop("random_states")
    old["callbacks"]["LastCheckpoint"] = random_state | {"cuda": []}
    torch.save(old, tmp_path / "checkpoints" / "last.ckpt")
    file = tmp_path / ".hydra" / "config.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("chargpt.run.callbacks.", "chargpt.callbacks."))
    resume(tmp_path, "+callbacks.stop=null")
    assert_same_end(whole, tmp_path)


def test_a_clock_that_was_set_back(tiny, tmp_path, whole, monkeypatch):
    """An hour each time: weights and curves are those of a quiet run."""
    hours, real = [0], time.time
    monkeypatch.setattr(time, "time", lambda: real() - 3600 * hours[0])
    with pytest.raises(Stopped):
        start(tmp_path, *tiny, *QUIET, *signal_at(2))
    hours[0] += 1
    with pytest.raises(Stopped):
        resume(tmp_path, *signal_at(7))
    hours[0] += 1
    resume(tmp_path, "+callbacks.stop=null")
    assert_same_end(whole, tmp_path)


def test_stopped_in_validation(tiny, tmp_path, whole):
    with pytest.raises(Stopped) as stop:
        start(tmp_path, *tiny, *QUIET, *signal_at(4, when="on_validation_batch_start"))
    assert (stop.value.code, stop.value.step, load_state(tmp_path).step) == (143, 4, 4)
    resume(tmp_path, "+callbacks.stop=null")
    assert_same_end(whole, tmp_path)


def test_extended(tiny, tmp_path, copy, caplog):
    """A finished run says so; with more steps it is the run that had them from the start."""
    caplog.set_level("INFO")
    assert resume(copy) == pytest.approx(float(state(copy)["state_dict"]["best_val_loss.min_value"]))
    assert "is finished, 12 steps; a larger trainer.max_steps goes on" in caplog.text
    resume(copy, "trainer.max_steps=16")
    assert "Changed: trainer.max_steps=16 (was 12)" in caplog.text
    start(tmp_path / "long", *tiny, *QUIET, "trainer.max_steps=16")
    assert_same(state(tmp_path / "long")["state_dict"], state(copy)["state_dict"])
    assert curves(tmp_path / "long") == curves(copy)
    assert resumed(copy).trainer.max_steps == 16  # kept for the next time


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


# What may be said on going on


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.n_layer=3", r"model\.n_layer=3 cannot be honoured: the run began with model\.n_layer=2"),
        ("optimizer.lr=1", r"optimizer\.lr=1.* cannot be honoured"),
        ("seed=3", "cannot be honoured"),
        ("trainer.accumulate_grad_batches=2", "cannot be honoured"),
        ("data.batch_size=5", "cannot be honoured"),
    ],
)
def test_what_cannot_be_changed(whole, override, message):
    with pytest.raises(UserError, match=message):
        resumed(whole, override)


@pytest.mark.parametrize(
    "override", ["model=bigram", "data=pydocs", "+model=gpt", "~model", "model={n_layer: 3}", "model@x=gpt"]
)
def test_other_options_cannot_be_chosen(whole, override):
    with pytest.raises(UserError, match=f"single values can be changed, not {re.escape(override)}"):
        point_to_run([override, f"resume={whole}"])


def test_a_misspelt_key(copy):
    """Hydra refuses it, or of the Trainer's arguments, which it does not know, we do."""
    with pytest.raises(HydraException, match=r"model\.n_layr"):
        resumed(copy, "model.n_layr=3")
    with pytest.raises(UserError, match=r"did you mean trainer\.max_steps\?"):
        resume(copy, "trainer.max_stepz=3")


def test_what_stays_the_same_may_be_said(whole):
    assert resumed(whole, "model.n_layer=2", "seed=1337", "data=file").model.n_layer == 2


def test_a_callback_can_be_left_out(whole):
    """Deleted, or null; without a word it is there."""
    assert "throughput" in resumed(whole).callbacks
    assert "throughput" not in resumed(whole, "~callbacks.throughput").callbacks
    assert resumed(whole, "callbacks.throughput=null").callbacks.throughput is None


def test_callbacks_of_ones_own_must_be_said_again(tiny, tmp_path, caplog):
    with pytest.raises(Stopped):
        start(tmp_path, *tiny, *signal_at(2))
    with pytest.raises(
        UserError, match=r"had callbacks\.stop\._target_=faults\.SignalAt, .*say it again: python"
    ) as no:
        resume(tmp_path)
    assert "\n" not in str(no.value)
    command = shlex.split(str(no.value).partition("say it again: ")[2])
    assert command == ["python", "train.py", f"resume={tmp_path}", *(each.replace(" ", "") for each in signal_at(2))]
    assert f"Stopped after step 3. To go on: {shlex.join(command)}" in caplog.text
    with pytest.raises(UserError) as no:  # what is said now is in the command, too
        resume(tmp_path, command[3], "trainer.max_steps=7")
    assert shlex.split(str(no.value).partition("say it again: ")[2])[3:] == [
        command[3],
        "trainer.max_steps=7",
        command[4],
    ]
    again = signal_at(3)
    assert resumed(tmp_path, *again).callbacks.stop == {"_target_": "faults.SignalAt", "steps": [3]}
    assert resumed(tmp_path, "+callbacks.stop=null").callbacks.stop is None


def test_arguments_of_the_trainer_are_kept(tiny, tmp_path):
    """Those that conf/ does not name, too, with a plus or without."""
    start(tmp_path, *tiny, "trainer.limit_val_batches=2", "+trainer.detect_anomaly=false")
    kept = resumed(tmp_path).trainer
    assert (kept.limit_val_batches, kept.detect_anomaly, kept.max_steps) == (2, False, 6)
    assert resumed(tmp_path, "trainer.limit_val_batches=3").trainer.limit_val_batches == 3


def test_options_that_were_chosen_are_kept(tiny, tmp_path):
    sizes = [each for each in tiny if not each.startswith("model.n_")]
    start(tmp_path, *sizes, *QUIET, "model=bigram")
    assert choices_of(tmp_path) == {"data": "file", "model": "bigram"}
    resume(tmp_path, "trainer.max_steps=14")
    assert state(tmp_path)["global_step"] == 14


def test_the_precision_that_was_chosen_is_kept(tiny, tmp_path, monkeypatch, caplog):
    """Also on a machine that would choose another; the log says so."""
    caplog.set_level("INFO")
    monkeypatch.setattr(build, "best_precision", lambda device: Precision("bf16-mixed", "a test says so"))
    start(tmp_path, *tiny, "trainer.precision=auto")
    assert "parameters, on cpu in bf16-mixed (a test says so)\n" in caplog.text
    assert OmegaConf.load(tmp_path / ".hydra" / "config.yaml").trainer.precision == "bf16-mixed"
    caplog.clear()
    monkeypatch.setattr(build, "best_precision", lambda device: Precision("32-true", "another test says so"))
    resume(tmp_path, "trainer.max_steps=8")
    assert re.search(r"on cpu in bf16-mixed \(as before; .* take 32-true: another test says so\)\n", caplog.text)
    resume(tmp_path, "trainer.max_steps=9", "trainer.precision=32-true")
    assert "parameters, on cpu in 32-true\n" in caplog.text


def test_half_precision_that_a_cpu_does_not_have(copy):
    change(copy, {"trainer.precision": "16-mixed"})
    with pytest.raises(UserError, match=r"trainer\.precision=16-mixed, which a CPU does not have; trainer\.pr") as no:
        resume(copy, "trainer.max_steps=14")
    assert "\n" not in str(no.value)
    resume(copy, "trainer.max_steps=14", "trainer.precision=32-true")
    assert state(copy)["global_step"] == 14


def test_changed_text(tiny, text_file, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(text_file.read_text(encoding="utf-8"), encoding="utf-8")
    start(tmp_path / "run", *tiny, *QUIET, f"data.path={text}")
    text.write_text(text_file.read_text(encoding="utf-8") + "!", encoding="utf-8")
    with pytest.raises(UserError, match="is not the text that the run began with, or has changed"):
        resume(tmp_path / "run", "trainer.max_steps=14", f"data.path={text}")
    resume(tmp_path / "run", "trainer.max_steps=14")  # in the cache is the one that it began with
    assert OmegaConf.load(tmp_path / "run" / ".hydra" / "config.yaml").data.path == str(text)


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


def found(outputs, *arguments):
    """The name of the run that `resume=auto` finds."""
    line = point_to_run(["resume=auto", *arguments], outputs)
    assert line[-1].replace("hydra.run.dir", "resume") == line[-2]
    return Path(line[-1].partition("=")[2].strip("'")).name


def test_auto_takes_the_newest_run_that_can_go_on(whole, tmp_path, caplog):
    """And says why it passed over others: finished, damaged, of another's making, with links out of it."""
    with pytest.raises(UserError, match="resume=auto found no run"):
        found(tmp_path)
    for n, name in enumerate(("first", "old", "finished", "broken", "foreign", "linked", "emptied")):
        run = shutil.copytree(whole, tmp_path / name)
        if name == "foreign":
            change(run, {"callbacks.x": MKDIR})
        if name == "linked":
            (run / "train.log").symlink_to("/etc/hostname")
        if name == "emptied":
            (run / ".hydra" / "config.yaml").write_text("{}")
        if name in ("first", "old"):
            change(run, {"trainer.max_steps": 16})
        for file in (run / "checkpoints").iterdir():
            if name == "broken":
                file.write_bytes(b"nothing")
            os.utime(file, (n + 1, n + 1))
    assert found(tmp_path) == "old"
    passed = [record.message for record in caplog.records if record.message.startswith(f"Passing over {tmp_path}")]
    for name, why in (
        ("emptied", "was trained with another model: "),
        ("linked", "has a link to somewhere outside of it: train.log"),
        ("foreign", "had callbacks.x._target_=os.mkdir"),
        ("broken", "has no usable checkpoint"),
        ("finished", "finished, 12 steps; trainer.max_steps=12 is no larger"),
    ):
        assert sum(f"Passing over {tmp_path / name}: " in line and why in line for line in passed) == 1, name
    assert found(tmp_path, "trainer.max_steps=20") == "finished"
    with pytest.raises(UserError, match=r"there is no folder .*none"):
        point_to_run([f"resume={tmp_path}/none"])
    for inside in ("checkpoints", "checkpoints/last.ckpt", ".hydra/config.yaml"):
        with pytest.raises(UserError, match=rf"is not the folder of a run; did you mean resume={tmp_path}/old\?"):
            point_to_run([f"resume={tmp_path}/old/{inside}"])
    with pytest.raises(UserError, match="is not the folder of a run; resume=auto takes the newest run that can go on"):
        point_to_run([f"resume={tmp_path}"])


def test_allow_begins_a_run_or_goes_on_with_it(whole, tmp_path):
    """One command line for the first and every later start."""
    line = ["resume=allow", "model=gpt", f"hydra.run.dir={tmp_path}/run", "trainer.max_steps=16"]
    begins = ["model=gpt", f"hydra.run.dir={tmp_path}/run", "trainer.max_steps=16", "resume=null"]
    assert point_to_run(line) == begins
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)  # killed before the first save
    assert point_to_run(line) == begins
    shutil.copytree(whole, tmp_path / "run", dirs_exist_ok=True)
    place = f"{tmp_path}/run"
    goes_on = [
        "data=file",
        "model=gpt",
        "model=gpt",
        "trainer.max_steps=16",
        f"resume={place}",
        f"hydra.run.dir={place}",
    ]
    assert point_to_run(line) == goes_on
    with pytest.raises(UserError, match="resume= is empty"):
        point_to_run(["resume="])
    assert point_to_run(["init_from=sweep/0_seed=1"]) == ["init_from='sweep/0_seed=1'"]
    assert f"init_from={whole}" not in point_to_run([*line, f"init_from={whole}"])
    for folder in ([], ["hydra.run.dir="], ["hydra.run.dir=outputs/${now:%S}"]):
        with pytest.raises(UserError, match=r"resume=allow needs a folder .*: hydra\.run\.dir="):
            point_to_run(["resume=allow", *folder])


def test_a_run_that_ended_before_its_first_save(whole, tmp_path):
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    shutil.copy(whole / ".hydra" / "config.yaml", tmp_path / "run" / ".hydra")
    with pytest.raises(
        UserError, match=rf"ended before its first save, or .* with hydra\.run\.dir={tmp_path}/run, begins"
    ):
        load_state(tmp_path / "run")


def test_the_folder_is_the_runs_own(whole, tmp_path):
    with pytest.raises(UserError, match="a run goes on in its own folder"):
        point_to_run([f"resume={whole}", f"hydra.run.dir={tmp_path}"])
    shutil.copytree(whole, tmp_path / "${oc.env:HOME}")
    with pytest.raises(UserError, match=r"a run's folder cannot have \$\{ in its name"):
        point_to_run([f"resume={tmp_path}/${{oc.env:HOME}}"])


def test_command_line(whole, tmp_path):
    folder = tmp_path / "0_a=1,b='2'c"
    shutil.copytree(whole, folder)
    assert point_to_run(["x=1"]) == ["x=1"]
    assert point_to_run(["x=1", "resume=null"]) == ["x=1", "resume=null"]
    quoted = "'" + str(folder).replace("'", "\\'") + "'"
    line = ["data=file", "model=gpt", "x=1", f"resume={quoted}", f"hydra.run.dir={quoted}"]
    for way in (f"resume={folder}", f"+resume={folder}", f"++resume={folder}", f"resume={quoted}"):
        assert point_to_run(["x=1", way]) == line
        assert point_to_run(line) == ["data=file", "model=gpt", *line]  # as the processes of other devices do
    for flag in ("-m", "--multirun", "--multi"):
        with pytest.raises(UserError, match=r"a sweep goes on by resume=allow .*, with the rest as before"):
            point_to_run([flag, f"resume={folder}"])


# Configurations from strangers


def change(run, values):
    """Write values into a run's configuration."""
    file = run / ".hydra" / "config.yaml"
    cfg = OmegaConf.load(file)
    for key, value in values.items():
        OmegaConf.update(cfg, key, value, force_add=True)
    OmegaConf.save(cfg, file)


def take_out(run, keys):
    """Remove keys from a run's configuration."""
    file = run / ".hydra" / "config.yaml"
    cfg = OmegaConf.load(file)
    for key in keys:
        parent, _, name = key.replace("[", ".").rstrip("]").rpartition(".")
        del (OmegaConf.select(cfg, parent) if parent else cfg)[name]
    OmegaConf.save(cfg, file)


@pytest.mark.parametrize(
    "values",
    [
        {"trainer._target_": "subprocess.run"},
        {"callbacks.throughput._target_": "os.Throughput"},
        {"callbacks.best_checkpoint.dirpath": "${oc.env:HOME}"},
        {"trainer.logger.save_dir": "${run_dir}/../.."},
        {"run_dir": "elsewhere", "resume": "elsewhere"},
        {"data.block_size": "${oc.create:{_target_:os.mkdir,path:was_here}}"},
    ],
)
def test_a_strangers_classes_and_paths_are_not_taken(values, whole, copy, monkeypatch):
    """The run goes on with ours, in its own folder."""
    monkeypatch.chdir(copy.parent)
    ours = resumed(copy)
    change(copy, values)
    assert resumed(copy) == ours
    resume(copy, "trainer.max_steps=14")
    assert state(copy)["global_step"] == 14
    assert max(step for step, _ in curves(copy)["train/loss"]) == 14
    assert [file.name for file in copy.parent.iterdir()] == ["run"]


MKDIR = {"_target_": "os.mkdir", "path": "was_here"}  # Hydra itself refuses os.system


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"callbacks.x": MKDIR}, r"run had callbacks\.x\._target_=os\.mkdir, callbacks\.x\.path=was_here"),
        ({"callbacks.throughput": MKDIR}, r"run had callbacks\.throughput\._target_=os\.mkdir"),
        ({"callbacks.throughput.x": MKDIR}, r"run had callbacks\.throughput\.x\._target_=os\.mkdir"),
        ({"callbacks.progress.seconds": MKDIR}, r"run had callbacks\.progress\.seconds\._target_=os\.mkdir"),
        ({"callbacks.x._target_": "lightning.pytorch.callbacks.timer.logging.os.system"}, "run had"),
        ({"trainer.logger": MKDIR}, r"run had trainer\.logger\._target_=os\.mkdir"),
        ({"trainer.logger._target_": "builtins.exec"}, r"run had trainer\.logger\._target_=builtins\.exec"),
        ({"trainer.strategy": MKDIR}, r"run had trainer\.strategy\._target_=os\.mkdir"),
        ({"trainer.plugins": MKDIR}, r"run had trainer\.plugins\._target_=os\.mkdir"),
        ({"trainer.plugins": [MKDIR]}, r"run had trainer\.plugins="),
        ({"trainer.profiler": [[MKDIR]]}, r"run had trainer\.profiler="),
        ({"trainer[plugins]": [MKDIR]}, r"run had trainer\.plugins="),
        ({"trainer.logger.comment": [MKDIR]}, r"run had trainer\.logger\.comment="),
        ({"callbacks.text_samples.prompt": [MKDIR]}, r"run had callbacks\.text_samples\.prompt="),
        ({"optimizer.betas": ["${oc.env:HOME}", 0.9]}, r"run had optimizer\.betas="),
        ({"trainer.devices": ["${oc.env:HOME}"]}, r"run had trainer\.devices="),
        ({"callbacks.last_checkpoint.dirpath": "elsewhere"}, r"run had callbacks\.last_checkpoint\.dirpath="),
        ({"callbacks.last_checkpoint.dirpath": Path("elsewhere")}, r"run had callbacks\.last_checkpoint\.dirpath="),
        ({"trainer.logger.save_dir": "elsewhere"}, r"run had trainer\.logger\.save_dir=elsewhere"),
        ({"trainer.default_root_dir": Path("/etc")}, r"run had trainer\.default_root_dir=/etc"),
        ({"trainer.default_root_dir": b"/etc"}, r"run had trainer\.default_root_dir="),
        ({"data.batch_size": "${trainer.max_steps}"}, r"run had data\.batch_size="),
        ({"trainer.default_root_dir": "/etc"}, r"run had trainer\.default_root_dir=/etc"),
        ({"trainer.logger.name": "../../elsewhere"}, r"run had trainer\.logger\.name="),
        ({"trainer.max_time": "${oc.env:HOME}"}, r"run had trainer\.max_time="),
        ({"model.name": "os.system"}, r"model\.name must be one of gpt, bigram|another model"),
        ({"colour": "red"}, "run had colour=red"),
        ({"model.n_layer": "many"}, r"run had model\.n_layer=many"),
        ({"data.num_workers": "few"}, r"run had data\.num_workers=few"),
        ({"data.verify": "${seed}"}, r"run had data\.verify="),
        ({"trainer.misspelt": 5}, r"trainer\.misspelt is not an argument"),
        ({"callbacks": 5}, r"run had callbacks=5|damaged"),
        ({"trainer.strategy": "deepspeed"}, r"run had trainer\.strategy=deepspeed"),
        ({"trainer.profiler": "simple"}, r"run had trainer\.profiler=simple"),
        ({"trainer.max_time": {"minutes": 5}}, r"run had trainer\.max_time\.minutes=5"),
        ({"trainer.logger": 5}, r"trainer\.logger must be a Logger or a list or true or false or null; got 5"),
    ],
)
def test_a_strangers_configuration_is_refused(values, message, copy, monkeypatch, caplog):
    """In one line, and nothing of it runs."""
    monkeypatch.chdir(copy.parent)
    change(copy, values)
    with pytest.raises(UserError, match=message) as error:
        resume(copy, "trainer.max_steps=14")
    assert "\n" not in str(error.value)
    assert [file.name for file in copy.parent.iterdir()] == ["run"]
    assert state(copy)["global_step"] == 12
    # What is advised works.
    caplog.set_level("INFO")
    nulls = re.search(r"To go on without it, say (.*)\. To go on with it", str(error.value))
    if nulls or "To go on without it, remove it from" in str(error.value):
        if not nulls:
            take_out(copy, values)
        resume(copy, "trainer.max_steps=14", *(nulls[1].split(" ") if nulls else ()))
        assert "from step 12" in caplog.text


@pytest.mark.parametrize("file", ["config.yaml", "hydra.yaml"])
@pytest.mark.parametrize(
    "text",
    [
        "x: !!python/object/apply:os.mkdir [was_here]\n",
        "x: [1\n",
        "- 1\n",
        "5\n",
        "",
        "1: 2\n",
        "hydra: {runtime: {choices: {data: [file]}}}\n",
        "hydra: {runtime: {choices: {model: ../../train}}}\n",
        "hydra: {runtime: {choices: [data]}}\n",
    ],
)
def test_damaged_records(file, text, copy, monkeypatch):
    """One line says so; YAML that makes objects makes none."""
    monkeypatch.chdir(copy.parent)
    (copy / ".hydra" / file).write_text(text)
    with pytest.raises(UserError) as error:
        resume(copy, "trainer.max_steps=14")
    assert "\n" not in str(error.value)
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
    assert done.stderr.startswith("error: model.n_head=1 cannot be honoured")
    assert done.stderr.count("\n") == 1
    done = run_script("train.py", f"resume={folder}")
    assert done.returncode == 0
    assert "is finished, 9 steps; a larger" in done.stderr


def test_a_state_of_another_run(tiny, whole, tmp_path):
    """The state is compared with the settings before a model is made."""
    cfg = resumed(whole)
    cfg.model.n_layer = 3
    cfg.run_dir = str(tmp_path)
    with pytest.raises(UserError, match="was trained with another model"):
        train(cfg, load_state(whole))


@pytest.mark.parametrize("override", ["data.seed=7", "data.block_size=8"])
def test_what_hangs_on_another_key_cannot_be_changed_either(override, whole):
    with pytest.raises(UserError, match=rf"{override} cannot be honoured: the run began with {override[:-1]}"):
        resumed(whole, override)


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

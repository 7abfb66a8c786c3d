import shutil
import time

import pytest
import torch
from conftest import composed, run_script
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from chargpt.errors import UserError
from chargpt.resume import find_run, load_state, point_to_run, resumed_config
from train import train

# 12 steps, validation every 4, a save every 3, dropout on
STEPS = [
    "trainer.max_steps=12",
    "trainer.val_check_interval=4",
    "trainer.log_every_n_steps=1",
    "callbacks.last_checkpoint.every_n_steps=3",
]


def start(tiny, folder, *overrides):
    """Train as train.py does: the configuration is stored, the text samples are left out for speed."""
    cfg = composed(*tiny, *STEPS, "callbacks.text_samples=null", f"run_dir={folder}", *overrides)
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
    return train(cfg)


def resume(folder, *overrides):
    return train(resumed_config(folder, list(overrides)), load_state(folder))


def state(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def assert_same(a, b, path=""):
    """Bitwise, through all containers."""
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for n, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}[{n}]")
    else:
        assert a == b, path


def curves(folder):
    reader = EventAccumulator(str(folder))
    reader.Reload()
    tags = [tag for tag in reader.Tags()["scalars"] if tag != "chars_per_second"]
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in tags}


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    start(tiny, folder)
    return folder


def stops(tiny, folder, at, *overrides):
    """Start a run and go on with it after each signal; the number of times it took."""
    with pytest.raises(SystemExit) as end:
        start(tiny, folder, *overrides, "+callbacks.stop._target_=faults.SignalAt", f"+callbacks.stop.steps={at}")
    assert end.value.code == 143
    rounds = 2
    while left := [step for step in at if step >= load_state(folder).step]:
        with pytest.raises(SystemExit) as end:
            resume(folder, f"callbacks.stop.steps={left}")
        assert end.value.code == 143
        rounds += 1
    resume(folder, "callbacks.stop=null")
    return rounds


SETTINGS = {
    "plain": [],
    "accumulation": ["trainer.accumulate_grad_batches=3"],
    "workers": ["data.num_workers=2"],
    "cosine": ["optimizer.schedule=cosine", "optimizer.warmup_steps=3", "trainer.gradient_clip_val=0.5"],
    "bf16": ["trainer.precision=bf16-mixed"],
}


@pytest.mark.parametrize("name", SETTINGS)
def test_interrupted_is_bitwise_the_same(name, tiny, tmp_path, whole):
    """Stopped after several steps, the one before a validation and the one after included."""
    once, often = tmp_path / "once", tmp_path / "often"
    best = start(tiny, once, *SETTINGS[name]) if name != "plain" else shutil.copytree(whole, once) and None
    assert stops(tiny, often, [0, 2, 3, 4, 8, 10], *SETTINGS[name]) == 7
    a, b = state(once), state(often)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        assert_same(a[key], b[key], key)
    random = [next(value for name, value in each["callbacks"].items() if "Last" in name) for each in (a, b)]
    assert_same(*random)
    assert curves(once) == curves(often)
    if best is not None:
        assert best == b["state_dict"]["best_val_loss.min_value"]
    best_weights = [torch.load(f / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"] for f in (once, often)]
    assert_same(*best_weights)


def test_a_clock_that_was_set_back(tiny, tmp_path, whole, monkeypatch):
    """An hour each time: weights and curves are those of a quiet run."""
    hours, real = [0], time.time
    monkeypatch.setattr(time, "time", lambda: real() - 3600 * hours[0])
    stop = ["+callbacks.stop._target_=faults.SignalAt", "+callbacks.stop.steps=[2]"]
    with pytest.raises(SystemExit):
        start(tiny, tmp_path, *stop)
    hours[0] += 1
    with pytest.raises(SystemExit):
        resume(tmp_path, "callbacks.stop.steps=[7]")
    hours[0] += 1
    resume(tmp_path, "callbacks.stop=null")
    assert_same(state(whole)["state_dict"], state(tmp_path)["state_dict"])
    assert curves(whole) == curves(tmp_path)


def test_stopped_in_validation(tiny, tmp_path, whole):
    stop = ["+callbacks.stop._target_=faults.SignalAt", "+callbacks.stop.steps=[4]"]
    with pytest.raises(SystemExit) as end:
        start(tiny, tmp_path, *stop, "+callbacks.stop.when=on_validation_batch_start")
    assert end.value.code == 143
    assert load_state(tmp_path).step == 4
    resume(tmp_path, "callbacks.stop=null")
    assert_same(state(whole)["state_dict"], state(tmp_path)["state_dict"])
    assert curves(whole) == curves(tmp_path)


def test_extended(tiny, tmp_path, whole, caplog):
    """A finished run says so; with more steps it is the run that had them from the start."""
    caplog.set_level("INFO")
    shutil.copytree(whole, tmp_path / "run")
    resume(tmp_path / "run")
    assert "is finished: 12 steps" in caplog.text
    resume(tmp_path / "run", "trainer.max_steps=16")
    assert "Changed: trainer.max_steps=16 (was 12)" in caplog.text
    start(tiny, tmp_path / "long", "trainer.max_steps=16")
    assert_same(state(tmp_path / "long")["state_dict"], state(tmp_path / "run")["state_dict"])
    assert curves(tmp_path / "long") == curves(tmp_path / "run")
    assert resumed_config(tmp_path / "run", []).trainer.max_steps == 16  # kept for the next time


def test_the_best_so_far_is_the_lowest(tiny, tmp_path):
    """A learning rate so high that the loss goes up and down."""
    best = start(tiny, tmp_path, "optimizer.lr=2", "trainer.val_check_interval=1")
    values, bests = (list(dict(curves(tmp_path)[tag]).values()) for tag in ("val/loss", "val/best_loss"))
    assert values != sorted(values, reverse=True)
    assert bests == [min(values[: n + 1]) for n in range(len(values))]
    assert best == min(values)


def test_moved_folder_keeps_its_best(tiny, tmp_path):
    start(tiny, tmp_path / "a", "optimizer.lr=0.5")  # diverges soon
    shutil.move(tmp_path / "a", tmp_path / "b")
    best = (tmp_path / "b" / "checkpoints" / "best.ckpt").read_bytes()
    score = float(state(tmp_path / "b")["state_dict"]["best_val_loss.min_value"])
    assert resume(tmp_path / "b", "trainer.max_steps=14") == pytest.approx(score)
    assert (tmp_path / "b" / "checkpoints" / "best.ckpt").read_bytes() == best
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.n_layer=3", r"model\.n_layer=3 cannot be honoured: the run began with model\.n_layer=2"),
        ("model=bigram", "single values can be changed, not model=bigram"),
        ("data=pydocs", "single values can be changed"),
        ("~callbacks.throughput", "single values can be changed"),
        ("optimizer.lr=1", r"optimizer\.lr=1.* cannot be honoured"),
        ("seed=3", "cannot be honoured"),
        ("trainer.accumulate_grad_batches=2", "cannot be honoured"),
        ("model.n_layr=3", r"model\.n_layr=3: "),
        ("trainer.max_stepz=3", r"trainer\.max_stepz=3: "),
    ],
)
def test_what_cannot_be_changed(whole, override, message):
    with pytest.raises(UserError, match=message):
        resumed_config(whole, [override])


def test_what_stays_the_same_may_be_said(whole):
    assert resumed_config(whole, ["model.n_layer=2", "seed=1337"]).model.n_layer == 2


def test_changed_text(tiny, text_file, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(text_file.read_text())
    start(tiny, tmp_path / "run", f"data.path={text}")
    text.write_text(text_file.read_text() + "!")
    with pytest.raises(UserError, match="the text has changed since the run began"):
        resume(tmp_path / "run", "trainer.max_steps=14")


@pytest.mark.parametrize("harm", ["truncate", "flip", "empty", "foreign"])
def test_damaged_last_checkpoint(harm, whole, tmp_path, caplog):
    """The one before is taken, with a warning, and leads to the same end."""
    shutil.copytree(whole, tmp_path / "outputs" / "run")
    last = tmp_path / "outputs" / "run" / "checkpoints" / "last.ckpt"
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
    run = find_run("auto", tmp_path / "outputs")
    assert load_state(run).step == 9
    assert "Passing over" in caplog.text
    assert "last.ckpt" in caplog.text
    resume(run)
    assert_same(state(whole)["state_dict"], state(run)["state_dict"])


def test_auto_takes_the_newest_run_that_can_go_on(whole, tmp_path):
    import os

    with pytest.raises(UserError, match="resume=auto found no run"):
        find_run("auto", tmp_path)
    for n, name in enumerate(("old", "broken")):
        shutil.copytree(whole, tmp_path / name)
        for file in (tmp_path / name / "checkpoints").iterdir():
            if name == "broken":
                file.write_bytes(b"nothing")
            os.utime(file, (n + 1, n + 1))
    assert find_run("auto", tmp_path) == tmp_path / "old"
    with pytest.raises(UserError, match="is not the folder of a run"):
        find_run(str(tmp_path / "none"))


def test_command_line(whole, tmp_path):
    folder = tmp_path / "0_a=1,b=2"
    shutil.copytree(whole, folder)
    assert point_to_run(["x=1"]) == ["x=1"]
    assert point_to_run(["x=1", f"resume={folder}"]) == ["x=1", f"resume='{folder}'", f"hydra.run.dir='{folder}'"]
    with pytest.raises(UserError, match="a sweep cannot resume"):
        point_to_run(["-m", f"resume={folder}"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"callbacks.x._target_": "os.system", "callbacks.x.command": "touch was_here"}, "names other code"),
        ({"trainer._target_": "subprocess.run"}, "names other code"),
        ({"callbacks.x._target_": "lightning.pytorch.callbacks.timer.logging.os.system"}, "names other code"),
        ({"trainer.logger._target_": "builtins.exec"}, "names other code"),
        ({"trainer.plugins": [{"_target_": "os.system"}]}, "names other code"),
        ({"trainer.default_root_dir": "/etc"}, "names a path outside"),
        ({"callbacks.last_checkpoint.dirpath": "/tmp/elsewhere"}, "names a path outside"),
        ({"trainer.logger.save_dir": "${run_dir}/../.."}, "names a path outside"),
        ({"model.name": "os.system"}, "is damaged"),
        ({"colour": "red"}, "is damaged"),
        ({"model.n_layer": "many"}, "is damaged"),
    ],
)
def test_a_strangers_configuration(change, message, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole, tmp_path / "run")
    file = tmp_path / "run" / ".hydra" / "config.yaml"
    cfg = OmegaConf.load(file)
    for key, value in change.items():
        OmegaConf.update(cfg, key, value, force_add=True)
    OmegaConf.save(cfg, file)
    with pytest.raises(UserError, match=message):
        resumed_config(tmp_path / "run", [])
    assert not (tmp_path / "was_here").exists()


def test_yaml_that_makes_objects(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    file = tmp_path / "run" / ".hydra" / "config.yaml"
    file.write_text(f"x: !!python/object/apply:os.mkdir [{tmp_path}/was_here]\n")
    with pytest.raises(UserError, match="is damaged"):
        resumed_config(tmp_path / "run", [])
    assert not (tmp_path / "was_here").exists()


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
    assert "is finished: 9 steps" in done.stderr

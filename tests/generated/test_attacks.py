"""That the generated tests can fail: each attack works where nothing of ours is in its way, and whatever must not
happen is noticed when it does."""

import contextlib
import itertools
import os
import pickle
import shutil

import pytest
import torch
import yaml
from generated.attacks import (
    BOMBS,
    GRAFTS,
    INTERPOLATIONS,
    OBJECTS_THAT_RUN,
    PICKLES_THAT_RUN,
    SLURM,
    doubled,
    members_of,
    pack,
    saved,
    with_pickle,
    yaml_bomb,
    yaml_bomb_of_maps,
)
from generated.world import RUN, SECRET, Case, World
from omegaconf import OmegaConf

import train  # noqa: F401  # registers what conf/ needs

# The attacks


@pytest.mark.parametrize("name", PICKLES_THAT_RUN)
def test_pickles_run_code(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(TypeError):  # after the deed, what it left is of no use
        pickle.loads(PICKLES_THAT_RUN[name])
    assert (tmp_path / "was_here").is_dir()


@pytest.mark.parametrize("name", OBJECTS_THAT_RUN)
def test_checkpoints_run_code(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.ckpt").write_bytes(saved({"state_dict": {}, "new": OBJECTS_THAT_RUN[name]}))
    with contextlib.suppress(TypeError):
        torch.load("evil.ckpt", weights_only=False)
    assert (tmp_path / "was_here").is_dir()


def test_a_few_bytes_become_many(tmp_path):
    """Also where torch.load reads only weights."""
    (tmp_path / "good.ckpt").write_bytes(saved({"a": torch.zeros(3)}))
    small = BOMBS["bytearray"].replace(b"\x00\x00\x00\x60", b"\x00\x00\x00\x01")
    (tmp_path / "bomb.ckpt").write_bytes(with_pickle(tmp_path / "good.ckpt", small))
    assert (tmp_path / "bomb.ckpt").stat().st_size < 10_000
    assert len(torch.load(tmp_path / "bomb.ckpt", weights_only=True)) == 1 << 24


def test_small_trees_are_large():
    """A file holds in a few bytes, or says once, what is there a million times."""
    assert _count(doubled(10, lambda value: [value, value])) == 2**12 - 1
    assert _count(doubled(10, lambda value: {"a": value, "b": value})) == 2**12 - 1
    assert all(len(saved(GRAFTS[name])) < 10_000 for name in GRAFTS if name not in ("texts", "tensors"))
    assert len(saved(GRAFTS["texts"])) < 400_000
    assert len(saved(GRAFTS["tensors"])) < 500_000


def test_archives_can_be_packed_anew(tmp_path):
    (tmp_path / "good.ckpt").write_bytes(saved({"a": torch.arange(3)}))
    (tmp_path / "packed.ckpt").write_bytes(pack(members_of(tmp_path / "good.ckpt")))
    assert torch.load(tmp_path / "packed.ckpt", weights_only=True)["a"].tolist() == [0, 1, 2]


def _count(node) -> int:
    items = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return 1 + sum(map(_count, items))


def test_yaml_grows():
    """So that nine levels, or 25, are more than fit."""
    assert [_count(yaml.safe_load(yaml_bomb(n))) for n in (3, 4)] == pytest.approx([1230, 12340], rel=0.1)
    assert [_count(yaml.safe_load(yaml_bomb_of_maps(n))) for n in (8, 9)] == pytest.approx([1000, 2000], rel=0.1)


def test_interpolations_are_resolved(monkeypatch):
    """And those that are escaped, the second time."""
    monkeypatch.setenv("MY_SECRET", SECRET)
    for name, times in (("environment", 1), ("environment-in-text", 1), ("environment-escaped", 2), ("decoded", 1)):
        value = INTERPOLATIONS[name]
        for _ in range(times):
            assert SECRET not in value
            value = OmegaConf.to_container(OmegaConf.create({"a": value}), resolve=True)["a"]
        assert SECRET in value, name
    made = OmegaConf.to_container(OmegaConf.create({"a": INTERPOLATIONS["class"]}), resolve=True)
    assert made["a"] == {"_target_": "os.mkdir", "path": "was_here"}


def test_links_lead_to_the_users_files(tmp_path):
    diary = tmp_path / "diary.txt"
    diary.write_text("dear")
    (tmp_path / "link").symlink_to(diary)
    os.link(diary, tmp_path / "hard")
    for name, text in itertools.product(("link", "hard"), ("1", "2")):
        (tmp_path / name).write_text(name + text)
        assert diary.read_text() == name + text


def test_lightning_finds_checkpoints_unasked(tmp_path, monkeypatch):
    """Where a run is new, and SLURM has started it."""
    from lightning.pytorch import Trainer
    from lightning.pytorch.trainer.states import TrainerFn

    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(PICKLES_THAT_RUN["reduce"])
    trainer = Trainer(default_root_dir=tmp_path, logger=False, accelerator="cpu", enable_checkpointing=False)
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    found = trainer._checkpoint_connector._parse_ckpt_path(TrainerFn.FITTING, None, True, True)
    assert found == str(tmp_path / "hpc_ckpt_1.ckpt")


# What must not happen is noticed

PROGRAMS = {
    "import sys; sys.exit(3)": "STATUS 3",
    "import sys; sys.exit(2)": "NO ERROR LINE",
    "import sys; sys.exit(1)": "NO ERROR LINE",
    "import sys; print('error: a', file=sys.stderr); sys.exit('error: b')": "2 ERROR LINES",
    "import sys; print('error: a\\nb', file=sys.stderr); sys.exit(2)": "NO ERROR LINE",
    "import sys; sys.exit('error: \\x1b[2J')": "CONTROL CHARACTERS",
    "1 / 0": "TRACEBACK ZeroDivisionError",
    "raise KeyboardInterrupt": "STATUS 130|SIGNAL|TRACEBACK",
    "import os; os.abort()": "SIGNAL 6",
    "import time; time.sleep(60)": "HANGS",
    "while True: pass": "HANGS",
    "import os; os.open('fifo', os.O_RDONLY)": "HANGS",
    "bytearray(500 << 20)": "MEMORY",
    "bytearray(8 << 30)": "TRACEBACK MemoryError",
    "import os; os.mkdir('was_here')": "A STRANGER'S CODE RAN: work/was_here",
    "import os; os.mkdir('outputs/run/was_here')": "A STRANGER'S CODE RAN",
    "open('new.txt', 'w')": "MADE work/new.txt",
    "open('notes.txt', 'a').write('a')": "CHANGED work/notes.txt",
    "open('outputs/run/notes.txt', 'w')": "CHANGED work/outputs/run/notes.txt",
    "import os; os.remove('../home/diary.txt')": "LOST home/diary.txt",
    "import os; os.utime('../home/diary.txt')": "CHANGED home/diary.txt",
    "import os; os.symlink('a', '../home/b')": "MADE home/b",
    "open('../../beside.txt', 'w')": "MADE /.*/beside.txt",
    "import os; os.remove('outputs/run/checkpoints/best.ckpt'); raise SystemExit(2)": "LOST though refused",
    "import os; print(os.environ['MY_SECRET'])": "THE SECRET is in stdout",
    "import os; open('outputs/run/a', 'w').write(os.environ['MY_SECRET'])": "THE SECRET is in work/outputs/run/a",
}


def prepare(box):
    os.mkfifo(box / "work/fifo")


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_must_not_happen_is_noticed(program, world, tmp_path):
    (tmp_path / "program.py").write_text(program)
    command = (str(tmp_path / "program.py"),)
    expected = PROGRAMS[program]
    seconds = 1.0 if expected == "HANGS" else 20.0
    case = Case(f"program-{program}", [command], prepare, writes=(RUN,), stranger=True, seconds=seconds)
    with pytest.raises(pytest.fail.Exception, match=expected):
        world.check(case)


def test_a_refusal_of_what_must_work_is_noticed(world, tmp_path):
    (tmp_path / "program.py").write_text("import sys; print('error: a', file=sys.stderr); sys.exit(2)")
    command = (str(tmp_path / "program.py"),)
    world.check(Case("may-refuse", [command]))
    with pytest.raises(pytest.fail.Exception, match="STATUS 2 of what must work"):
        world.check(Case("must-work", [command], succeeds=True))


def test_what_must_hold_at_the_end_is_looked_at(world, tmp_path):
    (tmp_path / "program.py").write_text("open('made.txt', 'w')")
    commands = [(str(tmp_path / "program.py"),)] * 2

    def holds(box):
        return [f"MADE IT {(box / 'work/made.txt').exists()}"]

    with pytest.raises(pytest.fail.Exception, match="MADE IT True"):
        world.check(Case("holds", commands, writes=("work/made.txt",), holds=holds))


def test_a_good_program_passes(world, tmp_path):
    (tmp_path / "program.py").write_text("import sys; print('a'); open('outputs/run/a', 'w'); sys.exit('error: b')")
    world.check(Case("good", [(str(tmp_path / "program.py"),)], writes=(RUN,), stranger=True))


def test_control_c_ends_what_runs_for_ever(world, tmp_path):
    (tmp_path / "program.py").write_text(
        "try:\n    import time; time.sleep(60)\nexcept KeyboardInterrupt: raise SystemExit(130)"
    )
    world.check(Case("for-ever", [(str(tmp_path / "program.py"),)], stop_after=0.5))


def test_the_good_run_goes_on_and_is_sampled(world: World):
    """What the cases are mutations of is good."""
    box = world.sandbox("good-run")
    made = world.run(box, "train.py", "resume=outputs/run")
    assert made.status == 0, made.stderr
    assert "from step 2" in made.stderr
    assert "2 steps in" in made.stderr
    made = world.run(box, "sample.py", "--ckpt", "outputs/run", "--max-new-tokens", "5", "--prompt", "green")
    assert (made.status, len(made.stdout)) == (0, 11), made.stderr
    shutil.rmtree(box)

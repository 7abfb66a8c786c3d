import multiprocessing
import os
import shutil
import signal
import time

import pytest

from chargpt.errors import UserError
from chargpt.run.folder import CONFIG, check_contents, claim, held, settle_events, short


def test_short(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(short(tmp_path / "outputs" / "run")) == "outputs/run"
    assert short(tmp_path.parent / "run") == tmp_path.parent / "run"


@pytest.mark.parametrize("name", ["losses.csv", "loss.png", "samples.jsonl"])
def test_files_of_a_persons_own_are_not_replaced(name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"has a {name}, which would be lost"):
        claim(tmp_path, "a: 1")
    assert (tmp_path / name).read_text() == "mine"


def test_only_one_run_can_claim_a_folder(tmp_path):
    claim(tmp_path / "run", "a: 1\n")
    (tmp_path / "run" / "checkpoints" / "last.ckpt").touch()
    for config in ("a: 1\n", "a: 2\n"):
        with pytest.raises(UserError, match=r"run holds a run already; hydra\.run\.dir="):
            claim(tmp_path / "run", config)
    (tmp_path / "other" / ".hydra").mkdir(parents=True)
    claim(tmp_path / "other", "a: 1\n")


def test_a_run_that_ended_before_its_first_save_can_begin_again(tmp_path):
    """Another one cannot where the first has left something: it may be a model that somebody put there."""
    claim(tmp_path, "a: 1\n")
    claim(tmp_path, "a: 2\n")
    (tmp_path / CONFIG).parent.mkdir()
    (tmp_path / CONFIG).write_text("a: 1\n", encoding="utf-8")
    (tmp_path / "checkpoints" / "best.ckpt").touch()
    claim(tmp_path, "a: 1\n")
    with pytest.raises(UserError, match="holds a run already"):
        claim(tmp_path, "a: 2\n")
    (tmp_path / CONFIG).unlink()
    with pytest.raises(UserError, match="holds a run already"):
        claim(tmp_path, "a: 1\n")


def hold(folder, ready):
    with held(folder):
        ready.send("held")
        signal.pause()


def test_one_process_at_a_time(tmp_path):
    """The second is told at once, and the lock ends with a process that is killed."""
    ours, theirs = multiprocessing.Pipe()
    other = multiprocessing.get_context("spawn").Process(target=hold, args=(tmp_path, theirs))
    other.start()
    assert ours.recv() == "held"
    with pytest.raises(UserError, match=f"another process is at work in {tmp_path}"), held(tmp_path):
        pass
    other.kill()
    other.join()
    with held(tmp_path):
        pass


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    halves = ["checkpoints/.last.ckpt.tmp", "checkpoints/.best.ckpt.tmp", ".hydra/config.yaml.tmp"]
    whole = ["checkpoints/last.ckpt", ".hydra/config.yaml", "mine.tmp"]
    for name in [*halves, *whole]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with held(tmp_path):
        assert [(tmp_path / name).exists() for name in [*halves, *whole]] == [False] * 3 + [True] * 3


@pytest.mark.parametrize("place", [".hydra/config.yaml.tmp", "train.log", "checkpoints", ".lock", "a/b"])
def test_links_to_somewhere_else(place, tmp_path):
    """Writing to one writes to its target, so they are refused, those of no target included; others are fine."""
    run, target = tmp_path / "run", tmp_path / "target"
    (run / place).parent.mkdir(parents=True)
    for other in (target, run.parent / "run2", tmp_path / "none"):
        if other != tmp_path / "none":
            other.touch()
        (run / place).symlink_to(other)
        with pytest.raises(UserError, match=f"the run's folder .* has a link to somewhere outside of it: {place}"):
            check_contents(run)
        (run / place).unlink()
    (run / place).symlink_to("../run/inside")
    check_contents(run)
    (run / place).unlink()
    os.link(target, run / place)
    with pytest.raises(UserError, match="has a hard link"):
        check_contents(run)
    (run / place).unlink()
    os.mkfifo(run / place)
    with pytest.raises(UserError, match="has neither a file nor a folder"):
        check_contents(run)
    (run / place).unlink()
    shutil.copytree(run, tmp_path / "link").joinpath("inside").touch()
    (tmp_path / "run3").symlink_to(tmp_path / "link")  # the folder itself is where its owner says
    check_contents(tmp_path / "run3")


def test_checkpoints_that_lightning_loads_by_itself(tmp_path):
    (tmp_path / "hpc_ckpt_1.ckpt").touch()
    with pytest.raises(UserError, match="of a name that Lightning loads by itself: hpc_ckpt_1"):
        claim(tmp_path, "")


def test_events_of_the_future_are_settled(tmp_path):
    """All come before what is written from now on, in their order; other files keep their names."""
    now = int(time.time())
    for name in (f"events.out.tfevents.{now + 50}.host.b", f"events.out.tfevents.{now - 50}.host.a", "tfevents.txt"):
        (tmp_path / name).write_text(name[-1], encoding="utf-8")
    settle_events(tmp_path)
    names = sorted(file.name for file in tmp_path.glob("events*"))
    seconds = [int(name.split(".")[3]) for name in names]
    assert [(tmp_path / name).read_text(encoding="utf-8") for name in names] == ["a", "b"]
    assert seconds[1] - seconds[0] == 100
    assert seconds[1] < now + 1
    assert (tmp_path / "tfevents.txt").exists()


def test_events_of_odd_names_stay(tmp_path):
    """Folders, numbers that are none of a clock, and what would take another's name."""
    for name in ("099999999999.x", "99999999999.x", "9" * 30 + ".x", "\u0661" * 11 + ".x"):
        (tmp_path / f"events.out.tfevents.{name}").mkdir()
    for name in ("9999999999.y", "10000000000.y", "09999999999.y"):
        (tmp_path / f"events.out.tfevents.{name}").write_text(name, encoding="utf-8")
    settle_events(tmp_path)
    files = {
        file.read_text(encoding="utf-8"): int(file.name.split(".")[3]) for file in tmp_path.iterdir() if file.is_file()
    }
    assert len(files) == 3
    assert files["09999999999.y"] == 9999999999
    assert files["10000000000.y"] - files["9999999999.y"] == 1
    assert sum(file.is_dir() for file in tmp_path.iterdir()) == 4


def test_events_of_the_past_stay(tmp_path):
    (tmp_path / "events.out.tfevents.1700000000.host.1").touch()
    settle_events(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["events.out.tfevents.1700000000.host.1"]

"""Who may work in a run's folder."""

import errno
import fcntl
import multiprocessing
import os
import signal

import pytest

from chargpt.errors import UserError
from chargpt.run.folder import check_contents, claim, held, short


def test_short(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(short(tmp_path / "outputs" / "run")) == "outputs/run"
    assert short(tmp_path.parent / "run") == tmp_path.parent / "run"


@pytest.mark.parametrize("name", ["losses.csv", "loss.png", "samples.jsonl", "checkpoints/best.ckpt"])
def test_files_of_a_person_are_not_replaced(name, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"has a {name}, which would be lost"):
        claim(tmp_path, began_here=False)
    assert (tmp_path / name).read_text() == "mine"
    claim(tmp_path, began_here=True)  # a run that ended before its first save


def test_a_folder_holds_one_run(tmp_path):
    claim(tmp_path, began_here=False)
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    for began_here in (False, True):
        with pytest.raises(UserError, match="holds a run already"):
            claim(tmp_path, began_here=began_here)


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


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks(error, tmp_path, monkeypatch, caplog):
    """A cloud drive, or NFS: the run goes on without, and the log says so."""

    def none(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", none)
    with held(tmp_path):
        assert "has no locks" in caplog.text


def test_files_of_a_person_stay(tmp_path):
    for name in ("checkpoints/.draft.tmp", ".draft.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with held(tmp_path):
        claim(tmp_path, began_here=False)
    assert (tmp_path / ".draft.tmp").exists()
    assert (tmp_path / "checkpoints" / ".draft.tmp").exists()


@pytest.mark.parametrize("place", [".hydra/config.yaml", "train.log", "checkpoints", ".lock", "a/b"])
def test_links_that_lead_out(place, tmp_path):
    """Writing to one writes to its target, also where there is none yet; others are fine."""
    run = tmp_path / "run"
    (run / place).parent.mkdir(parents=True)
    for target in (tmp_path / "run2", tmp_path / "none"):
        (run / place).symlink_to(target)
        with pytest.raises(UserError, match=f"a link that leads out of it: {run / place}"):
            check_contents(run)
        (run / place).unlink()
    (run / place).symlink_to("../run/inside")
    check_contents(run)
    (run / place).unlink()
    (tmp_path / "elsewhere").symlink_to(run)  # the folder itself is where its owner put it
    check_contents(tmp_path / "elsewhere")


def test_checkpoints_that_lightning_would_load(tmp_path):
    (tmp_path / "hpc_ckpt_1.ckpt").touch()
    with pytest.raises(UserError, match="hpc_ckpt_1"):
        claim(tmp_path, began_here=False)

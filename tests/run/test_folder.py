"""Who may work in a run's folder."""

import errno
import fcntl
import os

import pytest

from chargpt.errors import UserError
from chargpt.run.folder import check_contents, claim, held


@pytest.mark.parametrize("name", ["losses.csv", "loss.png", "samples.jsonl", "checkpoints/best.ckpt"])
def test_a_persons_files_are_not_overwritten(name, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for file in (name, ".draft.tmp", "checkpoints/.draft.tmp"):
        (tmp_path / file).write_text("mine")
    with pytest.raises(UserError, match=f"has a {name}, which would be lost"):
        claim(tmp_path, began_here=False)
    claim(tmp_path, began_here=True)  # a run that ended before its first save
    for file in (name, ".draft.tmp", "checkpoints/.draft.tmp"):
        assert (tmp_path / file).read_text() == "mine"
    for kept, message in (("checkpoints/last.ckpt", "holds a run"), ("hpc_ckpt_1.ckpt", "would load .*hpc_ckpt_1")):
        (tmp_path / kept).touch()
        for began_here in (False, True):
            with pytest.raises(UserError, match=message):
                claim(tmp_path, began_here=began_here)


def test_one_process_at_a_time(tmp_path):
    with held(tmp_path), pytest.raises(UserError, match=f"another process is at work in {tmp_path}"), held(tmp_path):
        pass
    with held(tmp_path):
        pass


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks(error, tmp_path, monkeypatch, caplog):
    """A cloud drive, or NFS: the run works without a lock, and the log says so."""

    def no_locks(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with held(tmp_path):
        assert "has no locks" in caplog.text


@pytest.mark.parametrize("place", [".hydra/config.yaml", "train.log", "checkpoints", ".lock", "a/b"])
def test_links_that_lead_out(place, tmp_path):
    """Writing to such a link writes to its target, even if that does not exist yet; other links are fine."""
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

import os
import signal
import subprocess
import sys
import threading

import pytest
from filelock import FileLock

from chargpt.cache import cache_folder, locked, replacing, tidy
from chargpt.errors import UserError


def test_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "chargpt"


def test_whole_or_not_at_all(tmp_path):
    """Until the end the old file is there; after an error nothing else is."""
    file = tmp_path / "file"
    with replacing(file) as out:
        out.write(b"first")
        assert not file.exists()
    assert file.read_bytes() == b"first"
    with replacing(file) as out:
        out.write(b"second")
        assert file.read_bytes() == b"first"
    assert file.read_bytes() == b"second"

    def interrupted():
        with replacing(file) as out:
            out.write(b"third")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert file.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_in_the_way(tmp_path):
    """The rename fails: nothing is left of the other name."""
    (tmp_path / "file" / "inside").mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot write .*file"), replacing(tmp_path / "file") as out:
        out.write(b"text")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("platform", "advice"), [("linux", True), ("darwin", False), ("win32", False)])
def test_a_folder_that_cannot_be_made(platform, advice, tmp_path, monkeypatch):
    """What is advised is advised where it helps."""
    (tmp_path / "a_file").write_text("not a folder")
    lock = locked(tmp_path / "a_file" / "x")
    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(UserError, match=r"cannot write .*: ") as error:
        lock.__enter__()
    assert ("XDG_CACHE_HOME names another folder" in str(error.value)) == advice


def test_what_the_killed_left_is_removed(tmp_path):
    """By the next one that writes there, of whatever name, or only of the given ones; all else stays."""
    for name in ("a.tmp", "b.uint8.x.tmp", "c.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "folder.tmp").mkdir()
    with locked(tmp_path, leftovers="b.*.tmp"):
        assert sorted(each.name for each in tmp_path.iterdir()) == [".lock", "a.tmp", "c.txt", "folder.tmp"]
    with locked(tmp_path):
        assert sorted(each.name for each in tmp_path.iterdir()) == [".lock", "c.txt", "folder.tmp"]


def test_tidying_waits_for_nobody(tmp_path, monkeypatch):
    tidy(tmp_path / "not_there")
    (tmp_path / "a.tmp").write_text("being written")
    with FileLock(tmp_path / ".lock"):
        thread = threading.Thread(target=tidy, args=(tmp_path,))  # a lock knows its own thread
        thread.start()
        thread.join()
        assert (tmp_path / "a.tmp").exists()
    tidy(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == [".lock"]


def test_one_at_a_time(tmp_path):
    """Who waits gets the folder when the other is done, and sees what it wrote."""
    seen = []

    def second():
        with locked(tmp_path):
            seen.append((tmp_path / "file").read_text())

    with locked(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        with replacing(tmp_path / "file") as out:
            out.write(b"first")
    thread.join(10)
    assert seen == ["first"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows kills otherwise")
def test_the_dead_hold_no_lock(tmp_path):
    code = """
import os, pathlib, sys
from chargpt.cache import locked, replacing
folder = pathlib.Path(sys.argv[1])
with locked(folder), replacing(folder / "file") as out:
    out.write(b"half")
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("*.tmp"))) == 1
    with locked(tmp_path):
        assert os.listdir(tmp_path) == [".lock"]

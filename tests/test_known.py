"""Files that are known again without being read."""

import json
import os

import pytest

from chargpt import known
from chargpt.known import recall, remember, stamps_of

OLD = 1_700_000_000  # long ago


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(known, "JUST_NOW", -1.0)  # the time of change of an inode cannot be set back
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for file in files:
        file.write_text(file.name)
    return files


def asked(files, what="hash"):
    return recall(what, stamps_of(files))


def test_known_as_long_as_nothing_changes(files, tmp_path):
    assert asked(files) is None
    remember("hash", files, stamps_of(files), "abc")
    assert asked(files) == "abc"
    assert asked(files, "another question") is None
    assert asked(files[:1]) is None
    assert asked(files[::-1]) is None
    (tmp_path / "link.txt").symlink_to(files[0])
    assert asked([tmp_path / "link.txt", files[1]]) == "abc"  # by any name


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.write_text("b.tx!"),
        lambda file: file.write_text("longer"),
        lambda file: os.utime(file, (OLD, OLD)),
        lambda file: (file.rename(file.with_suffix(".old")), file.write_text("b.txt")),
        lambda file: file.chmod(0o600),
    ],
)
def test_any_change_is_noticed(change, files):
    os.utime(files[1], (OLD - 9, OLD - 9))
    remember("hash", files, stamps_of(files), "abc")
    change(files[1])
    assert asked(files) is None


def test_a_change_that_keeps_size_and_time_is_noticed(files):
    """As `touch -r` or an editor that restores the time would make it: the time of the inode's change cannot be set."""
    os.utime(files[1], (OLD, OLD))
    remember("hash", files, stamps_of(files), "abc")
    files[1].write_text("b.tx!")
    os.utime(files[1], (OLD, OLD))
    assert asked(files) is None


def test_what_changed_while_it_was_read_is_not_kept(files):
    before = stamps_of(files)
    files[0].write_text("another")
    remember("hash", files, before, "abc")
    assert asked(files) is None
    files[0].unlink()
    remember("hash", files, before, "abc")  # and no error


def test_it_is_the_time_of_the_stamps_that_counts(files, monkeypatch):
    """However long the reading takes: a change in the same tick of a coarse clock would not be seen."""
    monkeypatch.setattr(known, "JUST_NOW", 2.0)
    os.utime(files[0], (OLD, OLD))
    before = stamps_of(files)
    monkeypatch.setattr("time.time", lambda: before.taken + 60)
    remember("hash", files, before, "abc")
    assert asked(files) is None


def test_what_changed_just_now_is_not_kept(files, monkeypatch):
    monkeypatch.setattr(known, "JUST_NOW", 60.0)
    remember("hash", files, stamps_of(files), "abc")
    assert asked(files) is None
    remember("hash", files, stamps_of(files), "abc", ours=True)
    assert asked(files) == "abc"


@pytest.mark.parametrize("content", ["", "[" * 100_000, "{}", "[]", '{"files": 5, "answer": "abc"}', "\0"])
def test_a_damaged_record_is_none(content, files, tmp_path):
    remember("hash", files, stamps_of(files), "abc")
    (record,) = (tmp_path / "cache" / "chargpt" / "known").glob("*.json")
    good = json.loads(record.read_text())
    record.write_text(content)
    assert asked(files) is None
    remember("hash", files, stamps_of(files), "abc")
    assert json.loads(record.read_text()) == good
    record.unlink()
    os.mkfifo(record)  # to open it would take for ever
    assert asked(files) is None


def test_a_cache_that_cannot_be_written(files, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(files[0]))
    remember("hash", files, stamps_of(files), "abc")
    assert asked(files) is None

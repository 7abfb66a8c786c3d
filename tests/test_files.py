"""Files are found once, and written completely or not at all."""

import os

import pytest

from chargpt import files
from chargpt.files import find, replacing, write


def test_find_follows_links_once_and_leaves_hidden_files_out(tmp_path):
    for name in ("a/x.txt", "b/y.txt", "b/.hidden.txt", ".git/z.txt", "b/y.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    outside = tmp_path.parent / f"{tmp_path.name}-other-disk"
    outside.mkdir()
    (outside / "w.txt").touch()
    (tmp_path / "linked").symlink_to(outside)
    for name in ("back", "again"):  # each leads back
        (tmp_path / "a" / name).symlink_to(tmp_path)
    assert [str(file.relative_to(tmp_path)) for file in find(tmp_path, "*.txt")] == [
        "a/x.txt",
        "b/y.txt",
        "linked/w.txt",
    ]


def test_an_error_leaves_what_was_there(tmp_path):
    write(tmp_path / "a.txt", b"before")
    with pytest.raises(TypeError), replacing(tmp_path / "a.txt") as out:
        out.write("half")
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_bytes() == b"before"


def test_what_a_killed_process_left_is_replaced_and_a_link_is_not_written_through(tmp_path):
    (tmp_path / "outside").touch()
    (tmp_path / ".a.txt.tmp").symlink_to(tmp_path / "outside")
    write(tmp_path / "a.txt", b"whole")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"a.txt": b"whole", "outside": b""}


@pytest.mark.parametrize("times", [2, 1000])
def test_a_file_that_is_busy_for_a_moment(times, tmp_path, monkeypatch):
    """On Windows, a file cannot be replaced while a virus scanner reads it."""
    monkeypatch.setattr(files, "BUSY", 0.3)
    real, tries = os.replace, []

    def busy(source, target):
        tries.append(source)
        if len(tries) <= times:
            raise PermissionError(13, "Permission denied")
        real(source, target)

    monkeypatch.setattr(os, "replace", busy)
    if times == 2:
        write(tmp_path / "a.txt", b"whole")
        assert (tmp_path / "a.txt").read_bytes() == b"whole"
    else:
        with pytest.raises(PermissionError):
            write(tmp_path / "a.txt", b"whole")
        assert not list(tmp_path.iterdir())

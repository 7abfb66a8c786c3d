"""Files: found, and written as a whole or not at all."""

import os

import pytest

from chargpt import files
from chargpt.files import find, replacing, write


def test_files_are_found_through_links_once_and_not_hidden(tmp_path):
    for name in ("a/x.txt", "b/y.txt", "b/.hidden.txt", ".git/z.txt", "b/y.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    outside = tmp_path.parent / f"{tmp_path.name}-other-disk"
    outside.mkdir()
    (outside / "w.txt").touch()
    (tmp_path / "linked").symlink_to(outside)
    for name in ("back", "again"):  # which would be followed for ever
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


@pytest.mark.parametrize("times", [2, 1000])
def test_a_file_that_is_busy_for_a_moment(times, tmp_path, monkeypatch):
    """As on Windows, while a virus scanner reads it: it is tried again, for some seconds."""
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

"""Files are found once, and written completely or not at all."""

import os
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from chargpt import files
from chargpt.files import find, replacing, write, write_figure
from chargpt.history import Point, add_losses, read_losses


def test_find_follows_links_once_and_leaves_hidden_files_out(tmp_path):
    root, disk = tmp_path / "root", tmp_path / "disk"
    for name in ("root/a/x.txt", "root/b/y.txt", "root/b/.hidden.txt", "root/.git/z.txt", "root/b/y.md", "disk/w.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for link, target in {"linked": disk, "a/back": root, "a/again": root}.items():
        (root / link).symlink_to(target)
    assert [str(file.relative_to(root)) for file in find(root, "*.txt")] == ["a/x.txt", "b/y.txt", "linked/w.txt"]


def test_an_error_leaves_what_was_there(tmp_path):
    write(tmp_path / "a.txt", b"before")
    with pytest.raises(TypeError), replacing(tmp_path / "a.txt") as out:
        out.write_bytes("half")
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_bytes() == b"before"


def test_what_a_killed_process_left_is_replaced_and_a_link_is_not_written_through(tmp_path):
    (tmp_path / "outside").touch()
    (tmp_path / ".a.txt.tmp").symlink_to(tmp_path / "outside")
    write(tmp_path / "a.txt", b"whole")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"a.txt": b"whole", "outside": b""}


def test_a_file_that_is_busy_for_a_moment(tmp_path, monkeypatch):
    """On Windows, a file cannot be replaced while a virus scanner reads it."""
    monkeypatch.setattr(files, "BUSY_TIMEOUT", 0.3)

    def busy(owner, name, times):
        real, denials = getattr(owner, name), [PermissionError(13, "Permission denied")] * times

        def denied(*arguments, **options):
            if denials:
                raise denials.pop()
            return real(*arguments, **options)

        monkeypatch.setattr(owner, name, denied)

    busy(os, "replace", 2)
    write(tmp_path / "a.txt", b"whole")
    assert (tmp_path / "a.txt").read_bytes() == b"whole"
    busy(Path, "open", 2)  # as while Excel has it open
    add_losses(tmp_path, Point(1, 1.0, 2.0, 2.5, 9.0))
    assert len(read_losses(tmp_path)) == 1
    (tmp_path / "losses.csv").unlink()
    busy(os, "replace", 1000)
    with pytest.raises(PermissionError):
        write(tmp_path / "b.txt", b"whole")
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_figure_becomes_a_file_also_if_its_font_lacks_a_character(tmp_path, recwarn):
    figure = Figure()
    figure.text(0.5, 0.5, "道")
    write_figure(tmp_path / "a.png", figure)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert not recwarn.list

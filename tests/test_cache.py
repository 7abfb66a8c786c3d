import pytest

from chargpt.cache import cache_folder, replacing
from chargpt.errors import UserError


def test_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "chargpt"


def test_whole_or_not_at_all(tmp_path):
    """Until the end the old file is there; after an error nothing else is."""
    file = tmp_path / "folder" / "file"
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
    assert list(file.parent.iterdir()) == [file]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "a_file").write_text("not a folder")
    with pytest.raises(UserError, match=r"cannot write .*: .*; XDG_CACHE_HOME names another folder"):
        replacing(tmp_path / "a_file" / "x").__enter__()

"""Texts are found where a path, a glob or a source says, or refused in a line."""

import functools
import hashlib
import http.server
import os
import threading
import unicodedata

import pytest

from chargpt import sources as room
from chargpt.corpus import encode_text
from chargpt.errors import UserError
from chargpt.sources import find_files, pydocs, shakespeare


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CHARGPT_DATA_DIR", raising=False)
    return tmp_path / "cache"


def make(folder, *names):
    """Files that contain their own names."""
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)


def found(*paths):
    """What the files of a text contain."""
    (path, *more) = map(str, paths)
    return [file.read_text() for file in find_files([path, *more] if more else path).files]


def test_a_folder(tmp_path):
    """Its texts at any depth, sorted; hidden files and those of other kinds are left out."""
    expected = ["UPPER.TXT", "a.txt", "b.txt", "sub.txt/[d] é.txt", "sub.txt/c.txt", "sub.txt/deep/e.txt.gz"]
    others = ["notes.md", "a.txt.gz", ".ipynb_checkpoints/a-checkpoint.txt", ".hidden.txt", "__MACOSX/._a.txt"]
    make(tmp_path, *reversed(expected), *others)
    assert found(tmp_path) == found(f"{tmp_path}/") == expected
    assert find_files(str(tmp_path)).name == f"{tmp_path} (6 files)"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("**/*.md", ["notes.md", "x.txt/more.md"]),
        ("**/*.txt", ["x/[e].txt", "x/c.txt", "x/y/z/d.txt"]),
        (".*/?.txt", [".hidden/a.txt"]),
        ("x/[c-e].txt", ["x/c.txt"]),
        ("x/[e].txt", ["x/[e].txt"]),  # a file of this name
    ],
)
def test_a_glob(pattern, expected, tmp_path):
    make(tmp_path, ".hidden/a.txt", "x/.b.txt", "x/c.txt", "x/y/z/d.txt", "x/[e].txt", "notes.md", "x.txt/more.md")
    assert found(tmp_path / pattern) == expected


def test_a_list(tmp_path):
    """Files, folders and globs in this order, each file once."""
    make(tmp_path, "b.txt", "a.txt", "x/c.txt", "x/d.txt")
    assert found(tmp_path / "b.txt", tmp_path / "x", tmp_path / "*.txt") == ["b.txt", "x/c.txt", "x/d.txt", "a.txt"]
    assert find_files([f"{tmp_path}/b.txt", f"{tmp_path}/x"]).name == f"{tmp_path}/b.txt, {tmp_path}/x (3 files)"
    (tmp_path / "x" / "link.txt").symlink_to("c.txt")
    (tmp_path / "x" / "itself").symlink_to(".")
    assert found(tmp_path / "x") == found(tmp_path / "x/**/*.txt") == ["x/c.txt", "x/d.txt"]


def test_names_from_home_and_above(tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    make(tmp_path, "a.txt")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    for path in ("~/a.txt", "~", "~/*.txt", "../a.txt"):
        assert found(path) == ["a.txt"]


@pytest.mark.parametrize(("typed", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_an_accent_in_the_other_form(typed, stored, tmp_path):
    """As one character or two: file systems differ."""
    make(tmp_path, unicodedata.normalize(stored, "café.txt"))
    assert len(found(tmp_path / unicodedata.normalize(typed, "café.txt"))) == 1


@pytest.mark.parametrize(
    ("path", "message"),
    [
        *((path, r"a text is missing: data\.path=my\.txt") for path in (None, "", [])),
        (["notes.md", "none.txt"], r"no text at data\.path=none\.txt"),
        (".", r"a folder with \.txt or \.txt\.gz files, or a glob such as 'folder/\*\*/\*\.md'"),
        *((path, "no text at data") for path in ("a\0b", "x" * 5000, "notes.md/a.txt")),
    ],
)
def test_no_such_text(path, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path, "notes.md")
    with pytest.raises(UserError, match=message):
        find_files(path)


def test_pydocs(cache):
    (file,) = pydocs(None).files
    content, written = file.read_bytes(), file.stat()
    assert len(content) > 300_000
    assert b"assert_stmt" in content
    pydocs(None)
    assert file.stat().st_ino == written.st_ino  # it is not written again
    file.write_text("of another Python")
    pydocs(None)
    assert file.read_bytes() == content


def test_wrong_shakespeare_is_refused_and_left_alone(tmp_path, monkeypatch):
    file = tmp_path / "tinyshakespeare.txt"
    file.write_text("To be")
    monkeypatch.setenv("CHARGPT_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match="is not tiny Shakespeare: its SHA-256 is"):
        shakespeare(None)
    assert file.read_text() == "To be"


def test_a_download_is_checked(tmp_path, cache, monkeypatch):
    """A server that sends something else, such as a page to log in: nothing of it stays."""
    page = b"<html>please log in</html>"
    (tmp_path / "input.txt").write_bytes(page)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(room, "SHAKESPEARE_URL", f"http://127.0.0.1:{server.server_port}/input.txt")
        with pytest.raises(UserError, match=r"cannot download .*hash.* at .*tinyshakespeare\.txt, or .* data=pydocs"):
            shakespeare(None)
        assert not [file for file in cache.rglob("*") if file.is_file()]
        monkeypatch.setattr(room, "SHAKESPEARE_SHA256", hashlib.sha256(page).hexdigest())
        (file,) = shakespeare(None).files
        assert (file.read_bytes(), cache in file.parents) == (page, True)
        server.shutdown()
    file.unlink()
    with pytest.raises(UserError, match=r"cannot download .*Connection"):  # nobody answers any more
        shakespeare(None)


@pytest.mark.slow
@pytest.mark.skipif("CHARGPT_DATA_DIR" not in os.environ, reason="needs the real text, in CHARGPT_DATA_DIR")
def test_the_lectures_text():
    corpus = encode_text(shakespeare(None))
    assert (len(corpus.ids), corpus.tokenizer.vocab_size) == (1_115_394, 65)
    assert corpus.tokenizer.characters == "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    assert corpus.tokenizer.decode(corpus.ids[:14]) == "First Citizen:"

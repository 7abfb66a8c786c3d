import hashlib
import http.server
import logging
import os
import threading

import pooch
import pytest

from chargpt import sources as room
from chargpt.corpus import encode_text
from chargpt.errors import UserError
from chargpt.sources import SOURCES, find_text


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CHARGPT_DATA_DIR", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def offline(monkeypatch):
    """A machine without network: each connection is refused at once, through a proxy on a closed port."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_the_names_are_those_of_the_functions():
    assert all(function.__name__ == name for name, function in SOURCES.items())
    assert SOURCES["file"] is room.file


def test_file_folder_and_glob(tmp_path):
    """A folder's texts at any depth, in order of name; what a glob names, of any kind but folders."""
    (tmp_path / "sub.txt").mkdir()
    for name in ("b.txt", "a.txt", "sub.txt/c.txt", "notes.md", "sub.txt/more.md"):
        (tmp_path / name).write_text(name)

    def found(path):
        text = find_text("file", str(tmp_path / path))
        assert text.name == str(tmp_path / path)
        return [str(file.relative_to(tmp_path)) for file in text.files]

    assert found("b.txt") == ["b.txt"]
    assert found("notes.md") == ["notes.md"]
    assert found("") == ["a.txt", "b.txt", "sub.txt/c.txt"]
    assert found("*.md") == ["notes.md"]
    assert found("**/*.md") == ["notes.md", "sub.txt/more.md"]
    assert found("*.txt") == ["a.txt", "b.txt"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, r"data=file needs a text: data\.path=my\.txt"),
        ("", r"data=file needs a text: data\.path=my\.txt"),
        ("none.txt", r"no text at data\.path=none\.txt"),
        ("*.txt", r"no text at data\.path=\*\.txt"),
        (".", r"the folder \. holds no \.txt file; a glob names others"),
    ],
)
def test_no_such_text(path, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.md").write_text("text")
    with pytest.raises(UserError, match=message):
        find_text("file", path, fallback="pydocs")


def test_pydocs_needs_no_network(cache, offline):
    text = find_text("pydocs")
    assert "Python" in text.name
    (file,) = text.files
    content = file.read_text(encoding="utf-8")
    assert len(content) > 300_000
    assert "assert_stmt" in content


def test_pydocs_of_another_python_is_replaced(cache):
    (file,) = find_text("pydocs").files
    content, written = file.read_bytes(), file.stat()
    find_text("pydocs")
    assert file.stat().st_ino == written.st_ino  # what is right stays
    file.write_text("older")
    find_text("pydocs")
    assert file.read_bytes() == content


def test_fallback_warns_once(cache, offline, caplog):
    text = find_text("shakespeare", fallback="pydocs")
    assert "Python" in text.name
    (warning,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    for part in ("NOT TRAINING ON SHAKESPEARE", text.name, "download failed", "CHARGPT_DATA_DIR", "fallback=null"):
        assert part in warning


def test_no_fallback_is_an_error(cache, offline):
    with pytest.raises(UserError, match=r"download failed .* CHARGPT_DATA_DIR"):
        find_text("shakespeare")


def test_a_silent_server_is_given_up(cache, monkeypatch):
    """Within seconds, for the connection and for each answer; and it is asked once."""
    asked = []

    def downloader(**options):
        asked.append(options["timeout"])
        raise TimeoutError("gave up")

    monkeypatch.setattr(pooch, "HTTPDownloader", downloader)
    with pytest.raises(UserError, match=r"download failed \(TimeoutError: gave up\)"):
        find_text("shakespeare", fallback="shakespeare")
    (timeouts,) = asked
    assert 0 < min(timeouts) <= max(timeouts) <= 10


def test_wrong_shakespeare_is_refused_and_left_alone(tmp_path, monkeypatch):
    file = tmp_path / "tinyshakespeare.txt"
    file.write_text("To be")
    monkeypatch.setenv("CHARGPT_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match="is not tiny Shakespeare: its SHA-256 is"):
        find_text("shakespeare", fallback="pydocs")
    assert file.read_text() == "To be"


def test_a_shakespeare_that_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "tinyshakespeare.txt").mkdir()
    monkeypatch.setenv("CHARGPT_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"cannot read .*tinyshakespeare\.txt: "):
        find_text("shakespeare", fallback="pydocs")


def test_download_is_checked_and_atomic(tmp_path, cache, monkeypatch):
    """A server that sends something else: nothing of it stays."""
    page = b"<html>please log in</html>"
    (tmp_path / "input.txt").write_bytes(page)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=tmp_path)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(room, "SHAKESPEARE_URL", f"http://127.0.0.1:{server.server_port}/input.txt")
        with pytest.raises(UserError, match="hash"):
            find_text("shakespeare")
        assert [file.name for file in cache.rglob("*") if file.is_file()] == []
        monkeypatch.setattr(room, "SHAKESPEARE_SHA256", hashlib.sha256(page).hexdigest())
        (file,) = find_text("shakespeare").files
        assert file.read_bytes() == page
        assert cache in file.parents
        server.shutdown()


@pytest.mark.slow
@pytest.mark.skipif("CHARGPT_DATA_DIR" not in os.environ, reason="needs the real text, in CHARGPT_DATA_DIR")
def test_the_lectures_text():
    corpus = encode_text(find_text("shakespeare"))
    assert (len(corpus.ids), corpus.tokenizer.vocab_size) == (1_115_394, 65)
    assert corpus.tokenizer.characters == "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    assert corpus.tokenizer.decode(corpus.ids[:14]) == "First Citizen:"

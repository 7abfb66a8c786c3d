import hashlib
import json
import logging
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chargpt import corpus as rooms
from chargpt.corpus import load_corpus
from chargpt.errors import UserError


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


def text_of(corpus):
    return corpus.tokenizer.decode(corpus.ids)


def write(path, text):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), piece=st.integers(1, 9)
)
def test_any_text_survives_any_cut(text, piece, tmp_path, monkeypatch):
    """Pieces so small that their edges cut characters."""
    monkeypatch.setattr(rooms, "PIECE", piece)
    corpus = load_corpus("file", write(tmp_path / "text.txt", text))
    assert text_of(corpus) == text
    assert corpus.tokenizer.characters == "".join(sorted(set(text)))
    assert corpus.sha256 == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(("distinct", "dtype"), [(1, np.uint8), (256, np.uint8), (257, np.uint16), (65537, np.uint32)])
def test_smallest_integer(distinct, dtype, tmp_path):
    text = "".join(chr(0x10000 + n) for n in range(distinct))
    corpus = load_corpus("file", write(tmp_path / "text.txt", text))
    assert corpus.ids.dtype == dtype
    assert isinstance(corpus.ids, np.memmap)
    assert np.array_equal(corpus.ids, np.arange(distinct))


def test_reused_unless_changed(tmp_path, cache, caplog):
    file = tmp_path / "text.txt"
    caplog.set_level(logging.INFO)
    load_corpus("file", write(file, "hello"))
    assert caplog.text.count("Encoding") == 1
    load_corpus("file", str(file))
    assert caplog.text.count("Encoding") == 1
    assert text_of(load_corpus("file", write(file, "other"))) == "other"
    assert caplog.text.count("Encoding") == 2


@pytest.mark.parametrize("harm", ["truncate", "flip", "delete", "description"])
def test_damaged_cache_is_written_again(harm, tmp_path, cache):
    text = "some text that is worth keeping"
    file = write(tmp_path / "text.txt", text)
    load_corpus("file", file)
    (ids,) = (cache / "chargpt" / "encoded").glob("*.uint8")
    (description,) = (cache / "chargpt" / "encoded").glob("*.json")
    good = ids.read_bytes()
    if harm == "truncate":
        ids.write_bytes(good[:-1])
    elif harm == "flip":
        ids.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    elif harm == "delete":
        ids.unlink()
    else:
        description.write_text("[")
    assert text_of(load_corpus("file", file)) == text
    assert ids.read_bytes() == good
    assert json.loads(description.read_bytes())["length"] == len(text)


def test_two_at_once(tmp_path, cache):
    """Processes that start together on an empty cache all get the text, and leave nothing else behind."""
    text = "".join(chr(200 + n % 1000) for n in range(300_000))
    file = write(tmp_path / "text.txt", text)
    code = (
        "import sys; from chargpt.corpus import load_corpus; c = load_corpus('file', sys.argv[1]);"
        "sys.exit(c.tokenizer.decode(c.ids) != open(sys.argv[1], encoding='utf-8').read())"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, file]) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert sorted(f.suffix for f in (cache / "chargpt" / "encoded").iterdir()) == [".json", ".uint16"]


def test_folder_and_glob(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "b.txt", "two ")
    write(tmp_path / "a.txt", "one ")
    write(tmp_path / "sub" / "c.txt", "three")
    write(tmp_path / "notes.md", "four")
    assert text_of(load_corpus("file", str(tmp_path))) == "one two three"
    assert text_of(load_corpus("file", str(tmp_path / "*.md"))) == "four"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no text at data.path="),
        (b"", "is empty"),
        (b"text\0more", "is binary, not text: a NUL byte at byte offset 4"),
        ("naïve".encode("latin-1"), "is not UTF-8: byte 0xef at byte offset 2"),
        ("é".encode()[:1], "is not UTF-8: byte 0xc3 at byte offset 0"),
        (b"x" * 10 + "道".encode()[:2], "is not UTF-8: byte 0xe9 at byte offset 10"),
    ],
)
@pytest.mark.parametrize("piece", [1, 3, 1 << 22])
def test_unusable_files(content, message, piece, tmp_path, monkeypatch):
    monkeypatch.setattr(rooms, "PIECE", piece)
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_corpus("file", str(tmp_path / "text.txt"))


def test_no_path():
    with pytest.raises(UserError, match=r"data\.path=my\.txt"):
        load_corpus("file")


def test_folder_without_text(tmp_path):
    write(tmp_path / "notes.md", "text")
    with pytest.raises(UserError, match=r"holds no \.txt file; a glob names others"):
        load_corpus("file", str(tmp_path))


@pytest.mark.parametrize(("source", "fallback"), [("shakespear", None), ("shakespeare", "moby")])
def test_unknown_source(source, fallback):
    with pytest.raises(UserError, match="must be one of shakespeare, pydocs, file"):
        load_corpus(source, fallback=fallback)


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", write(tmp_path / "a_file", "not a folder"))
    with pytest.raises(UserError, match=r"cannot write .* XDG_CACHE_HOME"):
        load_corpus("file", write(tmp_path / "text.txt", "text"))


def test_pydocs_needs_no_network(cache, offline):
    corpus = load_corpus("pydocs")
    assert len(corpus.ids) > 300_000
    assert "assert_stmt" in text_of(corpus)


def test_fallback_warns_once(cache, offline, caplog):
    started = time.perf_counter()
    corpus = load_corpus("shakespeare", fallback="pydocs")
    assert time.perf_counter() - started < 20
    assert "Python" in corpus.name
    (warning,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    for part in ("NOT TRAINING ON SHAKESPEARE", corpus.name, "download failed", "CHARGPT_DATA_DIR", "fallback=null"):
        assert part in warning


def test_no_fallback_is_an_error(cache, offline):
    with pytest.raises(UserError, match=r"download failed .* CHARGPT_DATA_DIR"):
        load_corpus("shakespeare")


def test_wrong_shakespeare_is_refused_and_left_alone(tmp_path, monkeypatch):
    file = tmp_path / "tinyshakespeare.txt"
    write(file, "To be")
    monkeypatch.setenv("CHARGPT_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match="is not tiny Shakespeare: its SHA-256 is"):
        load_corpus("shakespeare", fallback="pydocs")
    assert file.read_text() == "To be"


def test_download_is_checked_and_atomic(tmp_path, cache, monkeypatch):
    """A server that sends something else: nothing of it stays."""
    import http.server
    import threading

    write(tmp_path / "input.txt", "<html>please log in</html>")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=tmp_path)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(rooms, "SHAKESPEARE_URL", f"http://127.0.0.1:{server.server_port}/input.txt")
        with pytest.raises(UserError, match="hash"):
            load_corpus("shakespeare")
        assert [file.name for file in cache.rglob("*") if file.is_file()] == []
        digest = hashlib.sha256((tmp_path / "input.txt").read_bytes()).hexdigest()
        monkeypatch.setattr(rooms, "SHAKESPEARE_SHA256", digest)
        assert text_of(load_corpus("shakespeare")) == "<html>please log in</html>"
        server.shutdown()


@pytest.mark.slow
@pytest.mark.skipif("CHARGPT_DATA_DIR" not in os.environ, reason="needs the real text, in CHARGPT_DATA_DIR")
def test_the_lectures_text():
    corpus = load_corpus("shakespeare")
    assert (len(corpus.ids), corpus.tokenizer.vocab_size) == (1_115_394, 65)
    assert corpus.tokenizer.characters == "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    assert corpus.tokenizer.decode(corpus.ids[:14]) == "First Citizen:"

import hashlib
import json
import logging
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chargpt import corpus as room
from chargpt.corpus import encode_text
from chargpt.errors import UserError
from chargpt.sources import Text


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def encoded(file, text=None):
    """The corpus of a file, after a text, if there is one, was written there."""
    if text is not None:
        file.write_bytes(text.encode() if isinstance(text, str) else text)
    return encode_text(Text("a text", [file]))


def text_of(corpus):
    return corpus.tokenizer.decode(corpus.ids)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), piece=st.integers(1, 9)
)
def test_any_text_survives_any_cut(text, piece, tmp_path, monkeypatch):
    """Pieces so small that their edges cut characters."""
    monkeypatch.setattr(room, "PIECE", piece)
    corpus = encoded(tmp_path / "text.txt", text)
    assert text_of(corpus) == text
    assert corpus.tokenizer.characters == "".join(sorted(set(text)))
    assert corpus.sha256 == hashlib.sha256(text.encode()).hexdigest()


def test_several_files_are_one_text(tmp_path):
    files = [tmp_path / name for name in ("b.txt", "a.txt", "c.txt")]
    for file, text in zip(files, ("two ", "", "drei: öl"), strict=True):
        file.write_text(text, encoding="utf-8")
    corpus = encode_text(Text("some files", files))
    assert (corpus.name, text_of(corpus)) == ("some files", "two drei: öl")
    assert corpus.sha256 == hashlib.sha256("two drei: öl".encode()).hexdigest()


@pytest.mark.parametrize(("distinct", "dtype"), [(1, np.uint8), (256, np.uint8), (257, np.uint16), (65537, np.uint32)])
def test_smallest_integer(distinct, dtype, tmp_path):
    corpus = encoded(tmp_path / "text.txt", "".join(chr(0x10000 + n) for n in range(distinct)))
    assert corpus.ids.dtype == dtype
    assert isinstance(corpus.ids, np.memmap)
    assert not corpus.ids.flags.writeable
    assert np.array_equal(corpus.ids, np.arange(distinct))


def test_reused_unless_changed(tmp_path, cache, caplog):
    file = tmp_path / "text.txt"
    caplog.set_level(logging.INFO)
    encoded(file, "hello")
    assert caplog.text.count("Encoding") == 1
    encoded(file)
    assert caplog.text.count("Encoding") == 1
    assert text_of(encoded(file, "other")) == "other"
    assert caplog.text.count("Encoding") == 2


@pytest.mark.parametrize("harm", ["truncate", "flip", "delete", "description", "list", "another"])
def test_damaged_cache_is_written_again(harm, tmp_path, cache):
    text = "some text that is worth keeping"
    file = tmp_path / "text.txt"
    encoded(file, text)
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
        another = json.dumps(json.loads(description.read_bytes()) | {"characters": "abc"})
        description.write_text({"description": "[", "list": "[]", "another": another}[harm])
    assert text_of(encoded(file)) == text
    assert ids.read_bytes() == good
    assert json.loads(description.read_bytes())["length"] == len(text)
    assert json.loads(description.read_bytes())["characters"] == "".join(sorted(set(text)))


def test_two_at_once(tmp_path, cache):
    """Processes that start together on an empty cache all get the text, and leave nothing else behind."""
    file = tmp_path / "text.txt"
    file.write_text("".join(chr(200 + n % 1000) for n in range(300_000)), encoding="utf-8")
    code = (
        "import sys, pathlib; from chargpt.corpus import encode_text; from chargpt.sources import Text;"
        "file = pathlib.Path(sys.argv[1]); corpus = encode_text(Text('a text', [file]));"
        "sys.exit(corpus.tokenizer.decode(corpus.ids) != file.read_text(encoding='utf-8'))"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(file)]) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert sorted(f.suffix for f in (cache / "chargpt" / "encoded").iterdir()) == [".json", ".uint16"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*text.txt: No such file"),
        (b"", "a text is empty"),
        (b"text\0more", "is binary, not text: a NUL byte at byte offset 4"),
        ("naïve".encode("latin-1"), "is not UTF-8: byte 0xef at byte offset 2"),
        ("é".encode()[:1], "is not UTF-8: byte 0xc3 at byte offset 0"),
        (b"x" * 10 + "道".encode()[:2], "is not UTF-8: byte 0xe9 at byte offset 10"),
    ],
)
@pytest.mark.parametrize("piece", [1, 3, 1 << 22])
def test_unusable_files(content, message, piece, tmp_path, cache, monkeypatch):
    monkeypatch.setattr(room, "PIECE", piece)
    with pytest.raises(UserError, match=message):
        encoded(tmp_path / "text.txt", content)
    assert not cache.exists()


def test_a_text_that_changes_while_it_is_read(tmp_path, cache, monkeypatch):
    """Between the two passes over it: nothing is kept."""
    file = tmp_path / "text.txt"
    survey = room._survey

    def then_shortened(files, bar):
        found = survey(files, bar)
        file.write_text("hell")
        return found

    monkeypatch.setattr(room, "_survey", then_shortened)
    with pytest.raises(UserError, match="changed while it was read"):
        encoded(file, "hello")
    assert [found for found in cache.rglob("*") if found.is_file()] == []


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "a_file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a_file"))
    with pytest.raises(UserError, match=r"cannot write .* XDG_CACHE_HOME"):
        encoded(tmp_path / "text.txt", "text")

"""Texts are encoded exactly, once, or refused in a line."""

import codecs
import gzip
import hashlib
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chargpt import corpus as room
from chargpt.corpus import encode_text, find_encoded, ids_in, read_at_random
from chargpt.errors import UserError
from chargpt.sources import Text
from chargpt.tokenizer import CharTokenizer

BOM = codecs.BOM_UTF8
NOISE = "".join(map(chr, random.Random(0).choices(range(32, 127), k=500)))
ZIPPED = gzip.compress(NOISE.encode(), mtime=0)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of encoded texts, in an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "chargpt" / "encoded"


def encoded(file, text=None, **options):
    """The corpus of a file, after `text` was written to it."""
    if text is not None:
        file.write_bytes(text.encode() if isinstance(text, str) else text)
    return encode_text(Text("a text", [file]), **options)


def text_of(corpus):
    return corpus.tokenizer.decode(corpus.ids)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(text=TEXTS, piece=st.integers(3, 9))
def test_any_text_survives_any_cut(text, piece, tmp_path, monkeypatch):
    """In pieces so small that their edges cut characters."""
    monkeypatch.setattr(room, "PIECE", piece)
    corpus, text = encoded(tmp_path / "text.txt", "." + text), re.sub("\r\n?", "\n", text)
    assert text_of(corpus) == "." + text
    assert corpus.tokenizer.characters == "".join(sorted({".", *text}))
    assert corpus.sha256 == hashlib.sha256(f".{text}".encode()).hexdigest()
    found = find_encoded(corpus.sha256, "its name")
    assert (found.name, found.sha256, text_of(found)) == ("its name", corpus.sha256, "." + text)


@pytest.mark.parametrize("kind", ["characters", "bytes"])
def test_several_files_are_one_text(kind, tmp_path, cache):
    """Some compressed, one empty, one of two gzip members whose edge cuts a character."""
    umlaut = "zwei: öl ".encode()
    packed = gzip.compress(umlaut[:7]) + gzip.compress(umlaut[7:])
    files = {"a.txt": b"one ", "b.txt.gz": packed, "c.gz": gzip.compress(b""), "d": gzip.compress(b"four")}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    corpus = encode_text(Text("some files", [tmp_path / name for name in files]), kind=kind)
    assert text_of(corpus) == "one zwei: öl four"
    assert corpus.sha256 == hashlib.sha256(b"one " + umlaut + b"four").hexdigest()


@pytest.mark.parametrize(("distinct", "dtype"), [(256, np.uint8), (257, np.uint16), (65537, np.uint32)])
def test_ids_take_the_smallest_integers(distinct, dtype, tmp_path):
    corpus = encoded(tmp_path / "text.txt", "".join(chr(0x10000 + n) for n in range(distinct)))
    assert corpus.ids.dtype == dtype
    assert isinstance(corpus.ids, np.memmap)
    assert not corpus.ids.flags.writeable
    assert np.array_equal(corpus.ids, np.arange(distinct))


@pytest.mark.parametrize(
    ("content", "characters"),
    [
        (BOM + b"text\n", "text\n"),  # a mark of the encoding, and no part of the text
        (b"te" + BOM + b"xt", "te\ufeffxt"),  # elsewhere it is a character
        (b"a\r\nb\rc\n\r", "a\nb\nc\n\n"),
    ],
)
@pytest.mark.parametrize("piece", [2, 1 << 22])
def test_what_is_kept_of_a_file(content, characters, piece, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "PIECE", piece)
    assert text_of(encoded(tmp_path / "text.txt", content)) == characters
    (tmp_path / "text.gz").write_bytes(gzip.compress(content, mtime=0))
    assert text_of(encode_text(Text("a text", [tmp_path / "text.gz"] * 2))) == 2 * characters


@pytest.mark.parametrize("encoding", ["utf-8", "windows-1252", "utf-16", "utf-16-le", "mac-roman"])
@pytest.mark.parametrize("piece", [3, 1 << 22])
def test_a_text_is_the_same_in_any_encoding(encoding, piece, tmp_path, cache, monkeypatch):
    """It has one identity, however its lines end, so that a run finds it again."""
    monkeypatch.setattr(room, "PIECE", piece)
    (tmp_path / "text.txt").write_bytes("naïve “façade”\r\nend\r\n".encode(encoding))
    corpus = encode_text(Text("a text", [tmp_path / "text.txt"]), encoding=encoding)
    assert text_of(corpus) == "naïve “façade”\nend\n"
    assert corpus.sha256 == hashlib.sha256("naïve “façade”\nend\n".encode()).hexdigest()
    with pytest.raises(UserError, match="is not ASCII: byte"):
        encode_text(Text("a text", [tmp_path / "text.txt"]), encoding="ascii")


@pytest.mark.parametrize("content", [bytes(range(256)), BOM + b"\r\n\0", "naïve".encode("latin-1")])
def test_bytes_are_kept_as_they_are(content, tmp_path):
    corpus = encoded(tmp_path / "text.txt", content, kind="bytes")
    assert bytes(corpus.ids) == bytes(find_encoded(corpus.sha256, "", "bytes").ids) == content
    assert (corpus.tokenizer.vocab_size, corpus.ids.dtype) == (256, np.uint8)


# Refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a text is empty"),
        (gzip.compress(BOM, mtime=0), "a text is empty"),
        (b"\n" * 99, "one character again and again"),
        (b"PK\x03\x04\x14\0\x91\xff", "is binary, not text"),  # as a .docx begins
        (b"text\0more", "is binary, not text: it has NUL bytes"),
        ("naïve".encode("latin-1"), "byte 0xef at byte offset 2 .*; name its encoding: data.encoding="),
        (b"x" * 10 + "道".encode()[:2], "is not UTF-8: byte 0xe9 at byte offset 10"),
        (BOM + b"na\xefve", "is not UTF-8: byte 0xef at byte offset 5"),
        (gzip.compress("öl \xa0".encode() + b"\xff", mtime=0), "text.txt is not UTF-8: byte 0xff at byte offset 6"),
        ("text".encode("utf-16"), r"begins as UTF-16 does: data\.encoding=utf-16 .*, or .*: data\.tokenizer=bytes"),
        ("so ‘this’".encode("cp1252"), "byte 0x91 at byte offset 3 .* data.encoding=windows-1252 "),
        (b"\x85", "; name its encoding"),  # of Windows-1252, or Mac Roman, or ...
        *((ZIPPED[:cut], r"cannot read .*text\.txt: ") for cut in (2, 30, -1)),
        (ZIPPED[:99] + bytes([ZIPPED[99] ^ 0x55]) + ZIPPED[100:], r"cannot read .*text\.txt: "),
    ],
)
@pytest.mark.parametrize("piece", [3, 1 << 22])
def test_files_that_are_no_text(content, message, piece, tmp_path, cache, monkeypatch):
    monkeypatch.setattr(room, "PIECE", piece)
    with pytest.raises(UserError, match=message):
        encoded(tmp_path / "text.txt", content)
    assert not cache.exists()


@pytest.mark.parametrize("after", ["hell", "hello!", "hexlo", ""])
def test_a_file_that_changes_while_it_is_read(after, tmp_path, cache, monkeypatch):
    """Between the two passes, when `Encoding` is logged."""
    monkeypatch.setattr(room.log, "info", lambda _: (tmp_path / "text.txt").write_text(after))
    with pytest.raises(UserError, match="changed while it was read; run again"):
        encoded(tmp_path / "text.txt", "hello")
    assert os.listdir(cache) == [".lock"]


# The cache


@pytest.mark.parametrize("kind", ["characters", "bytes"])
def test_a_known_file_is_not_read_again(kind, tmp_path, cache):
    """It is known by path, size and time of change."""
    file, link = tmp_path / "text.txt", tmp_path / "link.txt"
    first, stat = encoded(file, "a text", kind=kind), file.stat()
    link.symlink_to(file)
    file.write_text("A TEXT")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = encode_text(Text("again", [link]), kind=kind)
    assert (again.name, text_of(again), again.sha256) == ("again", "a text", first.sha256)
    assert text_of(encode_text(Text("both", [file, file]), kind=kind)) == "A TEXT" * 2
    os.utime(file, (1_700_000_000, 1_700_000_000))
    assert text_of(encoded(file, kind=kind)) == "A TEXT"
    assert text_of(encoded(file, "a longer text", kind=kind)) == "a longer text"
    with pytest.raises(UserError, match="is not the text that the run began with"):
        encoded(file, kind=kind, expected=first.sha256)


@pytest.mark.parametrize("kind", ["characters", "bytes"])
def test_a_damaged_cache_is_written_again(kind, tmp_path, cache):
    """Any file missing, cut off, or with something else in it."""
    corpus = encoded(tmp_path / "text.txt", "a text: näive", kind=kind)
    wrong = [b"", b"[]", b"{}", b'{"characters": "ba", "length": 1}', b"\xff"]
    for file in list(cache.glob("[!.]*")):
        good = file.read_bytes()
        for bad in (None, *wrong, good[:-1], good + b" x"):
            file.unlink()
            if bad is not None:
                file.write_bytes(bad)
            if file.name != "known.json":
                assert find_encoded(corpus.sha256, "a text", kind) is None
            again = encoded(tmp_path / "text.txt", kind=kind)
            assert (again.sha256, text_of(again)) == (corpus.sha256, "a text: näive")
    for foreign in (None, 5, f"{corpus.sha256}\n", f"../encoded/{corpus.sha256}"):  # from a checkpoint
        assert find_encoded(foreign, "a text", kind) is None


@pytest.mark.processes
def test_processes_that_encode_at_once(tmp_path, cache):
    """All get the text, and leave nothing else behind."""
    file = tmp_path / "text.txt"
    file.write_text("".join(chr(200 + n % 1000) for n in range(300_000)), encoding="utf-8")
    code = (
        "import sys, pathlib; from chargpt.corpus import encode_text; from chargpt.sources import Text;"
        "file = pathlib.Path(sys.argv[1]); corpus = encode_text(Text('a text', [file]));"
        "sys.exit(corpus.tokenizer.decode(corpus.ids) != file.read_text(encoding='utf-8'))"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(file)]) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert sorted(f.suffix for f in cache.iterdir() if f.name != ".lock") == [".json", ".json", ".uint16"]


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="needs Linux")
def test_reads_at_random_bring_no_other_pages(tmp_path):
    """Linux lists the maps of a process, with the advice that was given (`rr`: random reads)."""
    ids = encoded(tmp_path / "text.txt", "text").ids
    again, maps = read_at_random(ids), Path("/proc/self/smaps").read_text(encoding="utf-8")
    advice = re.findall(rf"{ids.filename.name}\n.*?VmFlags:(.*?)\n", maps, re.DOTALL)
    assert sorted("rr" in each.split() for each in advice) == [False, True]
    assert np.array_equal(again, ids)


def test_ids_in_another_vocabulary(tmp_path):
    corpus, narrower = encoded(tmp_path / "text.txt", "hello"), CharTokenizer("elo")
    assert ids_in(CharTokenizer("ehlo"), corpus.tokenizer, corpus.ids) is corpus.ids
    wider = CharTokenizer("abehlo")
    assert wider.decode(ids_in(wider, corpus.tokenizer, corpus.ids)) == "hello"
    with pytest.raises(UserError, match="'h'"):
        ids_in(narrower, corpus.tokenizer, corpus.ids)
    assert narrower.decode(ids_in(narrower, corpus.tokenizer, corpus.ids, skip_unknown=True)) == "ello"

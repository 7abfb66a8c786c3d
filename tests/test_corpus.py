import codecs
import ctypes
import gzip
import hashlib
import json
import logging
import mmap
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chargpt import corpus as room
from chargpt.batches import RandomBlocks
from chargpt.cache import locked
from chargpt.corpus import Translated, encode_text, find_encoded, ids_in, read_at_random
from chargpt.errors import UserError
from chargpt.known import remember, stamps_of
from chargpt.sources import Text
from chargpt.tokenizer import CharTokenizer


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


def test_several_files_some_compressed(tmp_path, caplog):
    """Also such as are empty, or made of several parts; each is known by its first bytes, whatever it is called."""
    parts = [b"one ", "zwei: öl ".encode(), b"", b"four"]
    files = [tmp_path / name for name in ("a.txt", "b.txt.gz", "c.gz", "d")]
    files[0].write_bytes(parts[0])
    files[1].write_bytes(gzip.compress(parts[1][:7]) + gzip.compress(parts[1][7:]))  # in the middle of a character
    files[2].write_bytes(gzip.compress(parts[2]))
    files[3].write_bytes(gzip.compress(parts[3]))
    caplog.set_level("INFO")
    whole = "one zwei: öl four"
    for kind, what in (("characters", "13 distinct characters"), ("bytes", "as bytes")):
        corpus = encode_text(Text("some files", files), kind=kind)
        assert text_of(corpus) == whole
        assert corpus.sha256 == hashlib.sha256(whole.encode()).hexdigest()
        assert f"Encoding some files, 4 files: {what}" in caplog.text


@pytest.mark.parametrize("kind", ["characters", "bytes"])
@pytest.mark.parametrize("cut", [2, 10, 30, -9, -4, -1])
def test_a_compressed_file_that_is_cut_off(cut, kind, tmp_path, cache):
    whole = gzip.compress(bytes(random.Random(0).choices(range(32, 127), k=500)))
    (tmp_path / "text.gz").write_bytes(whole[:cut])
    with pytest.raises(UserError, match=r"text\.gz is damaged, or not all there: "):
        encode_text(Text("a text", [tmp_path / "text.gz"]), kind=kind)
    assert not list(cache.rglob("*.uint8"))


def test_a_compressed_file_that_is_damaged(tmp_path, cache):
    text = bytes(random.Random(0).choices(range(32, 127), k=500))
    whole = gzip.compress(text)
    for at in range(len(whole)):
        (tmp_path / "text.gz").write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            corpus = encode_text(Text("a text", [tmp_path / "text.gz"]))
        except UserError:
            continue
        assert text_of(corpus).encode() == text  # its time, or by which system it was made


BOM = codecs.BOM_UTF8


@pytest.mark.parametrize(
    ("content", "characters"),
    [
        (BOM + b"text\n", "text\n"),  # it says how the file is written, and is no part of the text
        (b"te" + BOM + b"xt", "te\ufeffxt"),  # elsewhere it is a character like any other
        (BOM + BOM + b"x", "\ufeffx"),
        (b"a\r\nb\rc\n", "a\r\nb\rc\n"),  # line ends of every kind stay as they are
        (b"last line", "last line"),  # and where there is none, none is added
        (b"\n\n text \n\n", "\n\n text \n\n"),
        (b"\x1a\x0c\x85"[:2], "\x1a\x0c"),
    ],
)
@pytest.mark.parametrize("piece", [1, 2, 1 << 22])
def test_what_is_kept_of_a_file(content, characters, piece, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "PIECE", piece)
    assert text_of(encoded(tmp_path / "text.txt", content)) == characters
    (tmp_path / "text.gz").write_bytes(gzip.compress(content))
    assert text_of(encode_text(Text("a text", [tmp_path / "text.gz"] * 2))) == 2 * characters
    corpus = encode_text(Text("a text", [tmp_path / "text.txt"]), kind="bytes")
    assert bytes(corpus.ids) == content  # of bytes all


@pytest.mark.parametrize("content", [BOM, b"", gzip.compress(b""), gzip.compress(BOM)])
def test_nothing_but_a_mark_is_an_empty_text(content, tmp_path):
    with pytest.raises(UserError, match="a text is empty"):
        encoded(tmp_path / "text.txt", content)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(content=st.binary(min_size=1), piece=st.integers(1, 9))
def test_any_bytes_survive(content, piece, tmp_path, monkeypatch):
    """Binary or not UTF-8; unless they begin as what gzip compresses."""
    monkeypatch.setattr(room, "PIECE", piece)
    (tmp_path / "text.txt").write_bytes(b" " + content)
    corpus = encode_text(Text("a text", [tmp_path / "text.txt"]), kind="bytes")
    assert bytes(corpus.ids) == b" " + content
    assert (corpus.tokenizer.vocab_size, corpus.ids.dtype) == (256, np.uint8)
    found = find_encoded(corpus.sha256, "a text", "bytes")
    assert bytes(found.ids) == b" " + content


# Known again without being read


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A file that changed long enough ago."""
    monkeypatch.setattr("chargpt.known.JUST_NOW", -1.0)
    file = tmp_path / "old.txt"
    file.write_text("an old text")
    return file


@pytest.mark.parametrize("kind", ["characters", "bytes"])
def test_a_known_text_is_not_read_again(kind, old, cache, monkeypatch):
    first = encode_text(Text("a text", [old]), kind=kind)
    read = []
    for name in ("_survey", "_spells"):
        monkeypatch.setattr(room, name, lambda *arguments, name=name: read.append(name))
    for again in (encode_text(Text("a text", [old]), kind=kind), find_encoded(first.sha256, "a text", kind)):
        assert (text_of(again), again.sha256) == ("an old text", first.sha256)
    assert read == []


def test_unless_it_is_asked_for(old, cache, monkeypatch):
    first = encoded(old)
    read, survey, spells = [], room._survey, room._spells
    monkeypatch.setattr(room, "_survey", lambda *arguments: read.append("text") or survey(*arguments))
    monkeypatch.setattr(room, "_spells", lambda *arguments: read.append("ids") or spells(*arguments))
    assert encode_text(Text("a text", [old]), afresh=True).sha256 == first.sha256
    assert read == ["text", "ids"]


def test_then_what_is_damaged_is_written_again(old, cache):
    """Also where a record says that it is as it should be."""
    sha256 = encoded(old).sha256
    folder = cache / "chargpt" / "encoded"
    ids = folder / f"{sha256}.uint8"
    good = ids.read_bytes()
    ids.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    files = [ids, folder / f"{sha256}.json"]
    remember("encoded", files, stamps_of(files), sha256)
    assert text_of(encode_text(Text("a text", [old]), afresh=True)) == "an old text"
    assert ids.read_bytes() == good


def test_a_known_text_that_has_changed(old, cache):
    encoded(old)
    assert text_of(encoded(old, "another one")) == "another one"
    with pytest.raises(UserError, match="is not the text that the run began with"):
        encode_text(Text("a text", [old]), hashlib.sha256(b"an old text").hexdigest())
    (ids,) = (cache / "chargpt" / "encoded").glob(f"{hashlib.sha256(b'another one').hexdigest()}.uint8")
    ids.write_bytes(bytes(11))
    assert text_of(encoded(old)) == "another one"  # written again


def test_characters_and_bytes_of_a_text_lie_side_by_side(old, cache):
    for _ in range(2):
        for kind, size in (("characters", 9), ("bytes", 256)):
            corpus = encode_text(Text("a text", [old]), kind=kind)
            assert (text_of(corpus), corpus.tokenizer.vocab_size) == ("an old text", size)


# Ids of a text that is larger than memory


def test_ids_in_another_vocabulary_are_looked_up_as_they_are_read(tmp_path):
    corpus, wider = encoded(tmp_path / "text.txt", "hello"), CharTokenizer("abehlo")
    ids = ids_in(wider, corpus.tokenizer, corpus.ids)
    assert isinstance(ids, Translated)
    assert ids.ids is corpus.ids
    assert len(ids) == 5
    assert wider.decode(ids[1:]) == "ello"
    assert ids[np.array([[0, 1], [3, 4]])].shape == (2, 2)
    with pytest.raises(UserError, match="'h'"):
        ids_in(CharTokenizer("elo"), corpus.tokenizer, corpus.ids)
    assert CharTokenizer("elo").decode(
        ids_in(CharTokenizer("elo"), corpus.tokenizer, corpus.ids, skip_unknown=True)
    ) == ("ello")


def pages_in_memory(file):
    """How many pages of a file the system has at hand."""
    page, size = mmap.PAGESIZE, file.stat().st_size
    libc = ctypes.CDLL(None, use_errno=True)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        place = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        found = (ctypes.c_ubyte * (-(-size // page)))()
        assert libc.mincore(ctypes.c_void_p(place), ctypes.c_size_t(size), found) == 0
        return sum(each & 1 for each in found)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs Linux")
def test_what_is_read_at_random_brings_no_other_pages(tmp_path):
    """A file of 64 MB that is on disk alone, and a hundred blocks of it."""
    file = tmp_path / "ids.uint8"
    with file.open("wb") as out:
        for _ in range(64):
            out.write(os.urandom(1 << 20))
        out.flush()
        os.fsync(out.fileno())
        os.posix_fadvise(out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if pages_in_memory(file):
        pytest.skip("this file system keeps its files in memory")
    ids = np.memmap(file, np.uint8, mode="r")
    train = ids[: 9 * len(ids) // 10]
    read_at_random(train)
    blocks = RandomBlocks(train, block_size=256, batch_size=50, seed=0)
    blocks[0], blocks[1]
    assert 50 < pages_in_memory(file) <= 200  # each block lies on one page, or on two


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
    assert json.loads(description.read_bytes())["characters"] == "".join(sorted(set(text)))
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
    assert sorted(f.suffix for f in (cache / "chargpt" / "encoded").glob("[!.]*")) == [".json", ".uint16"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*text.txt: No such file"),
        (b"", "a text is empty"),
        (b"text\0more", "is binary, not text: a NUL byte at byte offset 4"),
        ("naïve".encode("latin-1"), "is not UTF-8: byte 0xef at byte offset 2"),
        ("é".encode()[:1], "is not UTF-8: byte 0xc3 at byte offset 0"),
        ("道".encode("utf-16"), "is not UTF-8: it begins as UTF-16 does; convert it first, .* iconv -f UTF-16"),
        (b"x" * 10 + "道".encode()[:2], "is not UTF-8: byte 0xe9 at byte offset 10"),
    ],
)
@pytest.mark.parametrize("piece", [1, 3, 1 << 22])
def test_unusable_files(content, message, piece, tmp_path, cache, monkeypatch):
    monkeypatch.setattr(room, "PIECE", piece)
    with pytest.raises(UserError, match=message):
        encoded(tmp_path / "text.txt", content)
    assert not cache.exists()


@pytest.mark.parametrize("after", ["hell", "hello!", "hullo", "olleh", "hexlo", "", "h\0llo"])
def test_a_text_that_changes_while_it_is_read(after, tmp_path, cache, monkeypatch):
    """Between the two passes over it, in length or not: nothing is kept."""
    file = tmp_path / "text.txt"
    survey = room._survey

    def then_changed(*arguments):
        found = survey(*arguments)
        file.write_text(after)
        return found

    monkeypatch.setattr(room, "_survey", then_changed)
    with pytest.raises(UserError, match=r"changed while it was read; run again|is binary"):
        encoded(file, "hello")
    assert [found.name for found in cache.rglob("*") if found.is_file()] == [".lock"]


def test_another_text_than_expected(tmp_path, cache):
    """It is told before anything is written."""
    right = hashlib.sha256(b"hello").hexdigest()
    for content in ("hullo", "hello there"):
        (tmp_path / "text.txt").write_text(content)
        with pytest.raises(UserError, match=r"^a text is not the text that the run began with, or has changed"):
            encode_text(Text("a text", [tmp_path / "text.txt"]), right)
    assert not cache.exists()
    (tmp_path / "text.txt").write_text("hello")
    assert text_of(encode_text(Text("a text", [tmp_path / "text.txt"]), right)) == "hello"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_found_by_its_hash(text, tmp_path):
    corpus = encoded(tmp_path / "text.txt", text)
    found = find_encoded(corpus.sha256, "as it\nwas called")
    assert (found.name, found.sha256, text_of(found)) == ("as it\\nwas called", corpus.sha256, text)
    assert found.ids.dtype == corpus.ids.dtype
    assert not found.ids.flags.writeable


@pytest.mark.parametrize("name", ["", "0" * 64, "../" + "0" * 61, "x", None, 5, "{}A", " {}", "{}\n", "../encoded/{}"])
def test_what_is_no_hash_of_a_text_here(name, tmp_path, cache):
    sha256 = encoded(tmp_path / "text.txt", "text").sha256
    assert find_encoded(name.format(sha256[:-1]) if isinstance(name, str) else name, "a text") is None


def test_a_damaged_cache_is_not_found(tmp_path, cache):
    """Whichever byte of it is another, or missing."""
    corpus = encoded(tmp_path / "text.txt", "näive")
    for file in (cache / "chargpt" / "encoded").glob("[!.]*"):
        good = file.read_bytes()
        for at in range(len(good)):
            for bad in (good[:at], good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]):
                file.write_bytes(bad)
                assert find_encoded(corpus.sha256, "a text") is None
        file.unlink()
        assert find_encoded(corpus.sha256, "a text") is None
        os.mkfifo(file)
        assert find_encoded(corpus.sha256, "a text") is None
        file.unlink()
        file.write_bytes(good)
    assert text_of(find_encoded(corpus.sha256, "a text")) == "näive"


@pytest.mark.parametrize(
    "changes",
    [
        {"characters": "abcd"},  # other characters for the same ids
        {"characters": "ba"},
        {"characters": "a\ud800"},
        {"characters": ["a"]},
        {"characters": None},
        {"text_sha256": "0" * 64},
    ],
)
def test_a_description_that_is_not_this_texts(changes, tmp_path, cache):
    corpus = encoded(tmp_path / "text.txt", "text")
    (file,) = (cache / "chargpt" / "encoded").glob("*.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    assert find_encoded(corpus.sha256, "a text") is None
    assert text_of(encoded(tmp_path / "text.txt")) == "text"
    assert text_of(find_encoded(corpus.sha256, "a text")) == "text"


@pytest.mark.parametrize("content", ["[" * 100_000, "{}", "5", "", "\0"])
def test_no_description_at_all(content, tmp_path, cache):
    corpus = encoded(tmp_path / "text.txt", "text")
    (file,) = (cache / "chargpt" / "encoded").glob("*.json")
    file.write_text(content)
    assert find_encoded(corpus.sha256, "a text") is None


KILLED = """
import os, sys, pathlib
from chargpt import corpus
from chargpt.known import remember, stamps_of
from chargpt.sources import Text
from chargpt.tokenizer import CharTokenizer
encoder = corpus._encoder
def killed(piece):
    os.kill(os.getpid(), 9)
corpus._encoder = lambda tokenizer: killed
corpus.encode_text(Text("a text", [pathlib.Path(sys.argv[1])]))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows kills otherwise")
@pytest.mark.parametrize("known", [False, True])
def test_a_killed_process_leaves_nothing_for_long(known, tmp_path, cache):
    """The next start removes what it left, also where it has nothing to encode."""
    file = tmp_path / "text.txt"
    if known:
        encoded(file, "a text from before")
    file.write_text("hello")
    assert subprocess.run([sys.executable, "-c", KILLED, str(file)]).returncode == -signal.SIGKILL
    folder = cache / "chargpt" / "encoded"
    assert len(list(folder.glob("*.tmp"))) == 1
    text = "a text from before" if known else "hello"
    assert text_of(encoded(file, text)) == text
    assert sorted(each.suffix for each in folder.glob("[!.]*")) == [".json", ".uint8"]


def test_what_another_process_encoded_meanwhile(tmp_path, cache, caplog):
    """Who waited for the cache does not encode the text again."""
    caplog.set_level(logging.INFO)
    file = tmp_path / "text.txt"
    file.write_text("hello")
    folder = cache / "chargpt" / "encoded"
    with locked(folder):
        thread = threading.Thread(target=encoded, args=(file,))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        survey = hashlib.sha256(b"hello").hexdigest()
        room._encode(Text("a text", [file]), survey, CharTokenizer("ehlo"))
    thread.join(10)
    assert caplog.text.count("Encoding") == 1


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs Unix")
def test_a_cache_that_can_only_be_read(monkeypatch):
    """What it holds, it gives; for the rest there is a clear error."""
    with tempfile.TemporaryDirectory() as place:  # pytest's folders are closed to other users
        monkeypatch.setenv("XDG_CACHE_HOME", place)
        file, folder = Path(place, "text.txt"), Path(place, "chargpt", "encoded")
        encoded(file, "hello")
        find_encoded(encoded(file).sha256, "")  # Python loads an encoding at its first use, which that user may not
        (folder / ".lock").unlink()
        (folder / "x.tmp").write_text("left by somebody")
        for each in (place, file, folder.parent, folder, *folder.iterdir()):
            os.chmod(each, 0o555)
        user = os.geteuid()
        try:
            if user == 0:  # may write all the same
                os.seteuid(65534)
            assert text_of(encoded(file)) == text_of(find_encoded(encoded(file).sha256, "a text")) == "hello"
            with pytest.raises(UserError, match=r"cannot write .*encoded: Permission denied"):
                encode_text(Text("a text", [file, file]))
        finally:
            os.seteuid(user)
            os.chmod(place, 0o755)
            folder.parent.chmod(0o755)
            folder.chmod(0o755)
        assert (folder / "x.tmp").exists()


def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "a_file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a_file"))
    with pytest.raises(UserError, match=r"cannot write .* XDG_CACHE_HOME"):
        encoded(tmp_path / "text.txt", "text")


@pytest.mark.parametrize("value", ["", "relative", "/dev/null"])
def test_odd_places_of_the_cache(value, tmp_path, monkeypatch):
    """It works there, or one line says why not."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    if value == "/dev/null":
        with pytest.raises(UserError, match="cannot write /dev/null/chargpt/encoded: Not a directory"):
            encoded(tmp_path / "text.txt", "text")
    else:
        assert text_of(encoded(tmp_path / "text.txt", "text")) == "text"

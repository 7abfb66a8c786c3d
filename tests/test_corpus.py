import codecs
import ctypes
import gzip
import hashlib
import mmap
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chargpt import corpus as room
from chargpt.batches import RandomBlocks
from chargpt.corpus import Translated, encode_text, find_encoded, ids_in, read_at_random
from chargpt.errors import UserError
from chargpt.sources import Text
from chargpt.tokenizer import CharTokenizer

BOM = codecs.BOM_UTF8
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
often = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)


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


# What a text is


@often
@given(text=TEXTS, piece=st.integers(3, 9))
def test_any_text_survives_any_cut(text, piece, tmp_path, monkeypatch):
    """In pieces so small that their edges cut characters."""
    monkeypatch.setattr(room, "PIECE", piece)
    corpus = encoded(tmp_path / "text.txt", "." + text)
    assert text_of(corpus) == "." + text
    assert corpus.tokenizer.characters == "".join(sorted({".", *text}))
    assert corpus.sha256 == hashlib.sha256(f".{text}".encode()).hexdigest()
    found = find_encoded(corpus.sha256, "its name")
    assert (found.name, found.sha256, text_of(found)) == ("its name", corpus.sha256, "." + text)


@often
@given(content=st.binary(min_size=1), piece=st.integers(3, 9))
def test_any_bytes_survive(content, piece, tmp_path, monkeypatch):
    """Binary, or not UTF-8; but gzip is decompressed."""
    monkeypatch.setattr(room, "PIECE", piece)
    corpus = encoded(tmp_path / "text.txt", b" " + content, kind="bytes")
    assert bytes(corpus.ids) == bytes(find_encoded(corpus.sha256, "", "bytes").ids) == b" " + content
    assert (corpus.tokenizer.vocab_size, corpus.ids.dtype) == (256, np.uint8)


def test_several_files_are_one_text(tmp_path, caplog):
    """Some compressed, whatever they are called; some empty, some in several parts."""
    parts = [b"one ", "zwei: öl ".encode(), b"", b"four"]
    files = [tmp_path / name for name in ("a.txt", "b.txt.gz", "c.gz", "d")]
    files[0].write_bytes(parts[0])
    files[1].write_bytes(gzip.compress(parts[1][:7], mtime=0) + gzip.compress(parts[1][7:]))  # cuts a character
    files[2].write_bytes(gzip.compress(parts[2], mtime=0))
    files[3].write_bytes(gzip.compress(parts[3], mtime=0))
    caplog.set_level("INFO")
    whole = "one zwei: öl four"
    for kind, what in (("characters", "13 distinct characters"), ("bytes", "as bytes")):
        corpus = encode_text(Text("some files", files), kind=kind)
        assert (text_of(corpus), corpus.files) == (whole, 4)
        assert corpus.sha256 == hashlib.sha256(whole.encode()).hexdigest()
        assert f"Encoding some files, 4 files: {what}" in caplog.text


@pytest.mark.parametrize(
    ("content", "characters"),
    [
        (BOM + b"text\n", "text\n"),  # says how the file is written, and is no part of the text
        (b"te" + BOM + b"xt", "te\ufeffxt"),  # elsewhere it is a character
        (BOM + BOM + b"x", "\ufeffx"),
        (b"a\r\nb\rc\n", "a\r\nb\rc\n"),
        (b"last line", "last line"),
        (b"\x1a\x0c", "\x1a\x0c"),
    ],
)
@pytest.mark.parametrize("piece", [3, 1 << 22])
def test_what_is_kept_of_a_file(content, characters, piece, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "PIECE", piece)
    assert text_of(encoded(tmp_path / "text.txt", content)) == characters
    (tmp_path / "text.gz").write_bytes(gzip.compress(content, mtime=0))
    assert text_of(encode_text(Text("a text", [tmp_path / "text.gz"] * 2))) == 2 * characters
    assert bytes(encoded(tmp_path / "text.txt", kind="bytes").ids) == content


@pytest.mark.parametrize(("distinct", "dtype"), [(1, np.uint8), (256, np.uint8), (257, np.uint16), (65537, np.uint32)])
def test_smallest_integer(distinct, dtype, tmp_path):
    corpus = encoded(tmp_path / "text.txt", "".join(chr(0x10000 + n) for n in range(distinct)))
    assert corpus.ids.dtype == dtype
    assert isinstance(corpus.ids, np.memmap)
    assert not corpus.ids.flags.writeable
    assert np.array_equal(corpus.ids, np.arange(distinct))


def test_ascii_beside_many_other_characters(tmp_path, monkeypatch):
    """A piece of plain ASCII where ids take two bytes."""
    monkeypatch.setattr(room, "PIECE", 100)
    text = "plain " * 100 + "".join(map(chr, range(0x4E00, 0x4F00)))
    assert text_of(encoded(tmp_path / "text.txt", text)) == text


# What is refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a text is empty"),
        (BOM, "a text is empty"),
        (gzip.compress(BOM, mtime=0), "a text is empty"),
        (b"text\0more", "is binary, not text: a NUL byte at byte offset 4"),
        (BOM + b"text\0", "is binary, not text: a NUL byte at byte offset 7"),
        ("naïve".encode("latin-1"), "byte 0xef at byte offset 2 .*convert it to UTF-8 from the encoding that it is in"),
        ("é".encode()[:1], "is not UTF-8: byte 0xc3 at byte offset 0"),
        (b"x" * 10 + "道".encode()[:2], "is not UTF-8: byte 0xe9 at byte offset 10"),
        (BOM + b"na\xefve", "is not UTF-8: byte 0xef at byte offset 5"),
        (gzip.compress("öl \xa0".encode() + b"\xff", mtime=0), "text.txt is not UTF-8: byte 0xff at byte offset 6"),
        (
            "text".encode("utf-16"),
            r"begins as UTF-16 does; .* -f UTF-16 -t UTF-8, or .*: data\.tokenizer=bytes",
        ),
        ("道".encode("utf-16-be").join([codecs.BOM_UTF16_BE, b""]), "iconv -f UTF-16"),
        ("“quoted”".encode("cp1252"), "byte 0x93 at byte offset 0 .* iconv -f WINDOWS-1252 -t UTF-8"),
        ("so ‘this’".encode("cp1252"), "byte 0x91 at byte offset 3 .* iconv -f WINDOWS-1252 -t UTF-8"),
        (b"\x81", "the encoding that it is in"),  # not in Windows-1252
    ],
)
@pytest.mark.parametrize("piece", [3, 1 << 22])
def test_unusable_files(content, message, piece, tmp_path, cache, monkeypatch):
    monkeypatch.setattr(room, "PIECE", piece)
    with pytest.raises(UserError, match=message):
        encoded(tmp_path / "text.txt", content)
    assert not cache.exists()


def test_files_that_cannot_be_read(tmp_path, cache):
    with pytest.raises(OSError, match=r"No such file .*text\.txt"):
        encoded(tmp_path / "text.txt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"cannot read .*folder: Is a directory"):
        encoded(tmp_path / "folder")


@pytest.mark.parametrize("kind", ["characters", "bytes"])
@pytest.mark.parametrize("cut", [2, 10, 30, -9, -4, -1])
def test_a_compressed_file_that_is_cut_off(cut, kind, tmp_path, cache):
    whole = gzip.compress(bytes(random.Random(0).choices(range(32, 127), k=500)))
    with pytest.raises(UserError, match=r"text\.gz is damaged, or not complete: "):
        encoded(tmp_path / "text.gz", whole[:cut], kind=kind)
    assert not cache.exists()


def test_a_compressed_file_that_is_damaged(tmp_path, cache):
    text = bytes(random.Random(0).choices(range(32, 127), k=500))
    whole = gzip.compress(text, mtime=0)
    for at in range(len(whole)):
        try:
            corpus = encoded(tmp_path / "text.gz", whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        except UserError:
            continue
        assert text_of(corpus).encode() == text  # the damage is in its time stamp


@pytest.mark.parametrize("after", ["hell", "hello!", "hexlo", "", "h\0llo"])
def test_a_text_that_changes_between_the_passes(after, tmp_path, cache, monkeypatch):
    file, survey = tmp_path / "text.txt", room._survey

    def then_changed(*arguments):
        found = survey(*arguments)
        file.write_text(after)
        return found

    monkeypatch.setattr(room, "_survey", then_changed)
    with pytest.raises(UserError, match=r"changed while it was read; run again|is binary"):
        encoded(file, "hello")
    assert os.listdir(cache) == [".lock"]


def test_another_text_than_expected(tmp_path, cache):
    right = hashlib.sha256(b"hello").hexdigest()
    for content in ("hullo", "hello there"):
        with pytest.raises(UserError, match=r"^a text is not the text that the run began with, or has changed"):
            encoded(tmp_path / "text.txt", content, expected=right)
    assert not cache.exists()
    assert text_of(encoded(tmp_path / "text.txt", "hello", expected=right)) == "hello"


# The cache


@pytest.fixture
def passes(monkeypatch):
    """The passes that are made over texts, as they are made."""
    made, pieces = [], room._pieces
    monkeypatch.setattr(room, "_pieces", lambda files, kind, doing: made.append(doing) or pieces(files, kind, doing))
    return made


@pytest.mark.parametrize("kind", ["characters", "bytes"])
def test_a_known_text_is_not_read_again(kind, tmp_path, cache, passes):
    """By any of its names, until its size or its time of change is another."""
    file = tmp_path / "text.txt"
    first = encoded(file, "a text", kind=kind)
    (tmp_path / "link.txt").symlink_to(file)
    for name in (file, tmp_path / "link.txt"):
        again = encode_text(Text("again", [name]), kind=kind)
        assert (again.name, text_of(again), again.sha256) == ("again", "a text", first.sha256)
    assert passes == ["Reading", "Encoding"]
    os.utime(file, (1_700_000_000, 1_700_000_000))
    assert text_of(encoded(file, kind=kind)) == "a text"
    assert passes == ["Reading", "Encoding", "Reading"]  # it is encoded all the same
    assert text_of(encoded(file, "a longer text", kind=kind)) == "a longer text"
    assert text_of(encode_text(Text("both", [file, file]), kind=kind)) == "a longer text" * 2
    with pytest.raises(UserError, match="is not the text that the run began with"):
        encoded(file, kind=kind, expected=first.sha256)


def test_verify_reads_and_encodes_again(tmp_path, cache, passes):
    sha256 = encoded(tmp_path / "text.txt", "a text").sha256
    ids = cache / f"{sha256}.uint8"
    good = ids.read_bytes()
    ids.write_bytes(good[::-1])
    assert text_of(encoded(tmp_path / "text.txt")) == "txet a"  # nobody else writes there
    assert text_of(encoded(tmp_path / "text.txt", verify=True)) == "a text"
    assert ids.read_bytes() == good
    assert passes == ["Reading", "Encoding"] * 2


def test_characters_and_bytes_of_a_text_lie_side_by_side(tmp_path, cache):
    for _ in range(2):
        for kind, size in (("characters", 5), ("bytes", 256)):
            corpus = encoded(tmp_path / "text.txt", "a text", kind=kind)
            assert (text_of(corpus), corpus.tokenizer.vocab_size) == ("a text", size)


@pytest.mark.parametrize("kind", ["characters", "bytes"])
def test_a_damaged_cache_is_written_again(kind, tmp_path, cache):
    """Any file missing, cut off, or with something else in it."""
    corpus = encoded(tmp_path / "text.txt", "a text: näive", kind=kind)
    for file in list(cache.glob("[!.]*")):
        good = file.read_bytes()
        for bad in (
            None,
            b"",
            good[:-1],
            good + b" x",
            b"[]",
            b"{}",
            b"5",
            b'{"characters": "ba", "length": 1}',
            b"\xff",
        ):
            file.unlink()
            if bad is not None:
                file.write_bytes(bad)
            if file.name != "known.json":
                assert find_encoded(corpus.sha256, "a text", kind) is None
            again = encoded(tmp_path / "text.txt", kind=kind)
            assert (again.sha256, text_of(again)) == (corpus.sha256, "a text: näive")


@pytest.mark.parametrize("name", ["", "0" * 64, "../" + "0" * 61, "x", None, 5, "{}A", " {}", "{}\n", "../encoded/{}"])
def test_what_is_no_hash_of_a_text_here(name, tmp_path, cache):
    sha256 = encoded(tmp_path / "text.txt", "text").sha256
    assert find_encoded(name.format(sha256[:-1]) if isinstance(name, str) else name, "a text") is None


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
    assert sorted(f.suffix for f in cache.iterdir() if f.name != ".lock") == [".json", ".json", ".uint16"]


def test_a_process_that_is_killed(tmp_path, cache):
    """The next one is not held up, and removes what is left."""
    code = """
import os, pathlib, sys
from chargpt import corpus
from chargpt.sources import Text
pieces = corpus._pieces
def killed(files, kind, doing):
    yield from pieces(files, kind, doing)
    doing == "Encoding" and os.kill(os.getpid(), 9)
corpus._pieces = killed
corpus.encode_text(Text("a text", [pathlib.Path(sys.argv[1])]))
"""
    file = tmp_path / "text.txt"
    file.write_text("hello")
    assert subprocess.run([sys.executable, "-c", code, str(file)]).returncode == -9
    assert len(list(cache.glob(".*.tmp"))) == 1
    assert text_of(encoded(file)) == "hello"
    assert not list(cache.glob(".*.tmp"))


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs Unix")
def test_a_cache_that_can_only_be_read(monkeypatch):
    """Gives what it has, also if the file was touched; everything else is one clear error."""
    with tempfile.TemporaryDirectory() as place:  # pytest's folders are closed to other users
        monkeypatch.setenv("XDG_CACHE_HOME", place)
        file, folder = Path(place, "text.txt"), Path(place, "chargpt", "encoded")
        find_encoded(encoded(file, "hello").sha256, "")  # loads all modules, which that user may not
        (folder / ".lock").unlink(missing_ok=True)
        for each in (place, file, folder.parent, folder, *folder.iterdir()):
            os.chmod(each, 0o555)
        user = os.geteuid()
        try:
            if user == 0:  # may write all the same
                os.seteuid(65534)
            assert text_of(encoded(file)) == "hello"
            monkeypatch.setattr(room, "_index", dict)
            assert text_of(encoded(file)) == "hello"
            with pytest.raises(UserError, match=r"cannot write to .*encoded: Permission denied; .*XDG_CACHE_HOME"):
                encode_text(Text("a text", [file, file]))
        finally:
            os.seteuid(user)
            for each in (place, folder.parent, folder):
                os.chmod(each, 0o755)


def test_a_cache_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "a_file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a_file"))
    with pytest.raises(UserError, match=r"cannot write to .* XDG_CACHE_HOME"):
        encoded(tmp_path / "text.txt", "text")


# Ids of a text that is larger than memory


def test_ids_in_another_vocabulary_are_translated_as_they_are_read(tmp_path):
    corpus, wider = encoded(tmp_path / "text.txt", "hello"), CharTokenizer("abehlo")
    ids = ids_in(wider, corpus.tokenizer, corpus.ids)
    assert isinstance(ids, Translated)
    assert ids.ids is corpus.ids
    assert len(ids) == 5
    assert wider.decode(ids[1:]) == "ello"
    assert ids[np.array([[0, 1], [3, 4]])].shape == (2, 2)
    narrower = CharTokenizer("elo")
    with pytest.raises(UserError, match="'h'"):
        ids_in(narrower, corpus.tokenizer, corpus.ids)
    assert narrower.decode(ids_in(narrower, corpus.tokenizer, corpus.ids, skip_unknown=True)) == "ello"


def pages_in_memory(file):
    """The number of pages of a file that are in memory."""
    page, size = mmap.PAGESIZE, file.stat().st_size
    libc = ctypes.CDLL(None, use_errno=True)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        place = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        found = (ctypes.c_ubyte * (-(-size // page)))()
        assert libc.mincore(ctypes.c_void_p(place), ctypes.c_size_t(size), found) == 0
        return sum(each & 1 for each in found)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs Linux")
def test_random_blocks_bring_no_other_pages(tmp_path):
    """A hundred blocks of a file of 64 MB that is on disk alone."""
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
    blocks = RandomBlocks(read_at_random(ids)[: 9 * len(ids) // 10], block_size=256, batch_size=50, seed=0)
    blocks[0], blocks[1]
    assert 50 < pages_in_memory(file) <= 200  # each block lies on one page, or on two

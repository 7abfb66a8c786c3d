"""A text in its encoded form on disk.

A text is one or more UTF-8 files read in order, each plain or compressed by gzip. It is encoded once, into a file of
ids in the smallest unsigned integer type that fits the vocabulary (`SHA256.uint8`, `.uint16` or `.uint32`); a small
JSON file beside it (`SHA256.json`) describes them. Both are named by the text's SHA-256 and follow from the text alone,
so that a run finds its text again by the hash. Each is put in place by one rename: a reader sees a whole file or none.
A text of bytes has no vocabulary to describe, and lies in one file (`SHA256.bytes`).

A byte order mark at the beginning of a file says how the file is written, and is no part of a text of characters.
Everything else is kept as it stands: line ends of Windows (each is two characters), and a last line without an end.
"""

import codecs
import gzip
import hashlib
import json
import logging
import mmap
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
from tqdm import tqdm

from chargpt.cache import cache_folder, locked, replacing, tidy
from chargpt.errors import UserError
from chargpt.known import recall, remember, stamps_of
from chargpt.legacy_files import cannot_read
from chargpt.sources import Text
from chargpt.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer, tokenizer_of

log = logging.getLogger(__name__)

PIECE = 1 << 22  # bytes read at a time: the memory that encoding takes is a small multiple of this
UNICODE = 0x110000  # how many code points there are
CONVERT = "convert it first, for example with iconv -f {} -t UTF-8, or train on it as it is: data.tokenizer=bytes"
GZIP = b"\x1f\x8b"  # what such a file begins with, and no UTF-8 does


@dataclass(frozen=True)
class Corpus:
    """An encoded text.

    Attributes:
        name: what the text is, for people.
        sha256: of the text's bytes.
        tokenizer: of bytes, or of characters: its vocabulary is then the text's sorted distinct characters.
        ids: memory-mapped, read-only, shape (ids,), uint8, uint16 or uint32.
    """

    name: str
    sha256: str
    tokenizer: Tokenizer
    ids: np.ndarray


class Translated:
    """The ids of a text in another vocabulary, looked up as they are read: a text may be larger than memory.

    Args:
        ids: shape (ids,).
        table: the new id of each, shape (old vocabulary,).
    """

    def __init__(self, ids: np.ndarray, table: np.ndarray):
        self.ids = ids
        self.table = table

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, where: slice | np.ndarray) -> np.ndarray:
        return self.table[self.ids[where]]


Ids = np.ndarray | Translated  # what can be indexed by a slice or by an array of places


def encode_text(
    text: Text, expected: str | None = None, kind: str = CharTokenizer.kind, *, afresh: bool = False
) -> Corpus:
    """Encode a text, unless that was done before, and open it.

    Args:
        expected: the SHA-256 that the text must have.
        kind: one of `chargpt.tokenizer.KINDS`.
        afresh: read the text, and what is there of it, even where both are known from before.

    Raises:
        UserError: it is empty, binary or not UTF-8 (unless it is read as bytes), or another than expected, or cannot be
            read, or the cache cannot be written.
    """
    name, files, _ = text
    try:
        stamps = stamps_of(files)
    except OSError as error:
        raise cannot_read(Path(error.filename), error) from error
    known = None if afresh else recall(kind, stamps)
    corpus = find_encoded(known, name, kind) if known and expected in (None, known) else None
    if corpus is not None:
        tidy(_folder())
        return corpus
    with _bar("Reading", files) as bar:
        sha256, characters, size = _survey(files, bar, kind)
    if not size:
        raise UserError(f"{name} is empty: there is no text")
    if expected not in (None, sha256):
        raise UserError(f"{name} is not the text that the run began with, or has changed; start a new run for it")
    remember(kind, files, stamps, sha256)
    corpus = find_encoded(sha256, name, kind, afresh=afresh)
    if corpus is not None:
        tidy(_folder())
        return corpus
    with locked(_folder()):
        # Another process may have encoded it while this one waited.
        return find_encoded(sha256, name, kind, afresh=afresh) or _encode(text, sha256, tokenizer_of(characters))


def find_encoded(sha256: str, name: str, kind: str = CharTokenizer.kind, *, afresh: bool = False) -> Corpus | None:
    """What the cache holds of the text with this SHA-256: it is all there, and spells the text. Otherwise None.

    Args:
        sha256: may come from a stranger's file, as may the name.
        name: what the text is called.
        kind: one of `chargpt.tokenizer.KINDS`.
        afresh: read it even where it was read before and has not changed since.
    """
    if not re.fullmatch("[0-9a-f]{64}", str(sha256)):
        return None
    try:
        tokenizer = ByteTokenizer() if kind == ByteTokenizer.kind else _described(sha256)
        files = _files(sha256, tokenizer)
        if not all(file.is_file() for file in files):
            return None
        stamps = stamps_of(files)
        corpus = Corpus(name, sha256, tokenizer, _mapped(files[0], tokenizer))
        if afresh or recall("encoded", stamps) != sha256:
            if not _spells(corpus):
                return None
            remember("encoded", files, stamps, sha256)
        return corpus
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def ids_in(tokenizer: Tokenizer, own: Tokenizer, ids: np.ndarray, *, skip_unknown: bool = False) -> Ids:
    """Ids in another vocabulary than their own: they are looked up when they are read, unless some are left out.

    Args:
        own: the tokenizer of these ids, of the same kind.

    Raises:
        UnknownCharacterError: the vocabulary lacks characters of the other and `skip_unknown` is false.
    """
    if own.characters is None or tokenizer.characters is None or own.characters == tokenizer.characters:
        return ids
    tokenizer.encode(own.characters, skip_unknown=skip_unknown)
    known = np.array([character in tokenizer for character in own.characters])
    table = np.zeros(len(known), _dtype(tokenizer))
    table[known] = tokenizer.encode(own.characters, skip_unknown=True)
    return Translated(ids, table) if known.all() else table[ids[known[ids]]]


def read_at_random(ids: np.ndarray) -> None:
    """Tell the system that memory-mapped ids will be read at places that it cannot foresee. It then takes from the disk
    the pages that are read, and none around them."""
    root = ids
    while isinstance(root.base, np.ndarray):
        root = root.base
    mapped: object = root.base
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_RANDOM"):  # Windows has none
        begin = (ids.ctypes.data - root.ctypes.data) // mmap.PAGESIZE * mmap.PAGESIZE
        end = ids.ctypes.data - root.ctypes.data + ids.nbytes
        mapped.madvise(mmap.MADV_RANDOM, begin, end - begin)


def _folder() -> Path:
    return cache_folder() / "encoded"


def _files(sha256: str, tokenizer: Tokenizer) -> list[Path]:
    """Where an encoded text lies: its ids, and what describes them."""
    folder = _folder()
    if tokenizer.characters is None:
        return [folder / f"{sha256}.bytes"]
    return [folder / f"{sha256}.{_dtype(tokenizer)}", folder / f"{sha256}.json"]


def _described(sha256: str) -> CharTokenizer:
    """The vocabulary of an encoded text.

    Raises:
        OSError, ValueError, KeyError, TypeError, RecursionError: there is no description, or another's.
    """
    file = _folder() / f"{sha256}.json"
    if not file.is_file():  # to open a pipe would take for ever
        raise FileNotFoundError(file)
    found = json.loads(file.read_bytes())
    if found["text_sha256"] != sha256:
        raise ValueError("another text's")
    return CharTokenizer(found["characters"])


def _mapped(file: Path, tokenizer: Tokenizer) -> np.ndarray:
    return np.memmap(file, _dtype(tokenizer), mode="r")


def _encode(text: Text, sha256: str, tokenizer: Tokenizer) -> Corpus:
    """A second pass over a text, once its characters are known, and the files that this gives.

    Raises:
        UserError: it is no longer the text of the first pass, or the cache cannot be written.
    """
    name, files, _ = text
    ids_file, *description_files = encoded = _files(sha256, tokenizer)
    several = f", {len(files):,} files" if len(files) > 1 else ""
    log.info(f"Encoding {name}{several}: {_what_of(tokenizer)}")
    read = hashlib.sha256()
    with replacing(ids_file) as out, _bar("Encoding", files) as bar:
        for piece in map(_encoder(tokenizer), _pieces(files, bar, read.update, tokenizer.kind)):
            out.write(piece)
        if read.hexdigest() != sha256:
            raise UserError(f"{name} changed while it was read; run again once it is complete")
    for file in description_files:
        with replacing(file) as out:
            description = {"text_sha256": sha256, "characters": tokenizer.characters}
            out.write(json.dumps(description, ensure_ascii=False).encode())
    try:
        remember("encoded", encoded, stamps_of(encoded), sha256, ours=True)
        return Corpus(name, sha256, tokenizer, _mapped(ids_file, tokenizer))
    except OSError as error:  # a file system may lack the means
        raise cannot_read(ids_file, error) from error


def _what_of(tokenizer: Tokenizer) -> str:
    return "as bytes" if tokenizer.characters is None else f"{tokenizer.vocab_size:,} distinct characters"


def _encoder(tokenizer: Tokenizer) -> Callable[[bytes | str], bytes | memoryview]:
    """From a piece of a text to its ids."""
    if tokenizer.characters is None:
        return cast("Callable[[bytes | str], bytes]", bytes)
    table = np.zeros(UNICODE, _dtype(tokenizer))
    table[[ord(char) for char in tokenizer.characters]] = np.arange(tokenizer.vocab_size)
    ascii_table = bytes(table[:256]) if table.itemsize == 1 else None

    def encode(piece: bytes | str) -> bytes | memoryview:
        if isinstance(piece, bytes) and ascii_table is not None:
            return piece.translate(ascii_table)  # several times as quick
        return table[_code_points(piece)].data

    return encode


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    """The smallest type for its ids."""
    return np.min_scalar_type(tokenizer.vocab_size - 1)


def _spells(corpus: Corpus) -> bool:
    """Whether the ids and the vocabulary give back the text that the corpus is named by."""
    digest, characters = hashlib.sha256(), corpus.tokenizer.characters
    table = None if characters is None else _code_points(characters)
    ids_file = _files(corpus.sha256, corpus.tokenizer)[0]
    try:
        with ids_file.open("rb") as stream:  # what is read by the map would count as memory of this process
            while len(piece := np.fromfile(stream, corpus.ids.dtype, PIECE)):
                digest.update(piece.data if table is None else table[piece].tobytes().decode("utf-32-le").encode())
    except (ValueError, IndexError):  # what is no character, and what is not in the vocabulary
        return False
    return digest.hexdigest() == corpus.sha256


def _pieces(files: list[Path], bar: tqdm, told: Callable[[bytes], object], kind: str) -> Iterator[bytes | str]:
    """The text in pieces of at most `PIECE` bytes: as bytes where a piece is plain ASCII, or the text is one of bytes;
    otherwise decoded.

    Args:
        told: is called with all bytes of the text as they are read, a hash's `update`.
        kind: one of `chargpt.tokenizer.KINDS`.

    Raises:
        UserError: a file cannot be read or, in a text of characters, is binary (has a NUL byte) or is not UTF-8; the
            byte's offset is given, in a compressed file that of the decompressed text.
    """
    for file in files:
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            with file.open("rb") as raw:
                compressed = raw.read(len(GZIP)) == GZIP
                raw.seek(0)
                stream = cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if compressed else raw
                head = stream.read(len(codecs.BOM_UTF8)) if kind == CharTokenizer.kind else b""
                if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    advice = CONVERT.format("UTF-16")
                    raise UserError(f"{file} is not UTF-8: it begins as UTF-16 does; {advice}")
                offset, head = (len(head), b"") if head == codecs.BOM_UTF8 else (0, head)
                before = 0
                while piece := head + stream.read(PIECE):
                    head = b""
                    bar.update(raw.tell() - before)
                    before = raw.tell()
                    told(piece)
                    if kind == ByteTokenizer.kind:
                        yield piece
                        continue
                    if (at := piece.find(0)) >= 0:
                        raise UserError(f"{file} is binary, not text: a NUL byte at byte offset {offset + at}")
                    pending = len(decoder.getstate()[0])  # bytes of a character that the last edge cut
                    if piece.isascii() and not pending:
                        yield piece
                    else:
                        offset -= pending
                        yield decoder.decode(piece)
                        offset += pending
                    offset += len(piece)
                offset -= len(decoder.getstate()[0])
                decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise UserError(
                f"{file} is not UTF-8: byte 0x{byte:02x} at byte offset {offset + error.start}"
                f" ({error.reason}); {CONVERT.format('LATIN1')}"
            ) from error
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise UserError(f"{file} is damaged, or not all there: {error}") from error
        except OSError as error:
            raise cannot_read(file, error) from error


def _bar(what: str, files: list[Path]) -> tqdm:
    """A bar of the bytes read, on a terminal, from the first second on."""
    size = 0
    with suppress(OSError):  # told of when it is read
        size = sum(file.stat().st_size for file in files)
    return tqdm(desc=what, total=size, unit="B", unit_scale=True, delay=1, disable=None, leave=False)


def _code_points(piece: bytes | str) -> np.ndarray:
    """The piece's code points, shape (characters,)."""
    if isinstance(piece, bytes):
        return np.frombuffer(piece, np.uint8)
    return np.frombuffer(piece.encode("utf-32-le"), np.uint32)


def _survey(files: list[Path], bar: tqdm, kind: str) -> tuple[str, str | None, int]:
    """One pass over the text: its SHA-256, its sorted distinct characters (None for bytes), and its length."""
    digest, size = hashlib.sha256(), 0
    seen, seen_ascii = np.zeros(UNICODE, bool), b""
    for piece in _pieces(files, bar, digest.update, kind):
        size += len(piece)
        if kind == ByteTokenizer.kind:
            continue
        if isinstance(piece, str):
            seen[_code_points(piece)] = True
        elif new := piece.translate(None, seen_ascii):  # mostly nothing
            seen_ascii = bytes({*seen_ascii, *new})
    seen[list(seen_ascii)] = True
    return digest.hexdigest(), "".join(map(chr, np.flatnonzero(seen))) if kind == CharTokenizer.kind else None, size

"""A text, encoded once on disk.

A text is one or more UTF-8 files in order, plain or compressed by gzip. Its ids lie in the user's cache, in the
smallest unsigned integers that hold the vocabulary (`SHA256.uint8`, `.uint16` or `.uint32`; `.bytes` for bytes), beside
a description in JSON. Both are named by the text's SHA-256: a resumed run finds its text by the hash. `known.json`
keeps the hashes of files by path, size and time of change, so that they need not be read again.

Of a text of characters, a byte order mark at the beginning of a file is left out. Nothing else is changed, not even
`\\r\\n`, and nothing is put between files.
"""

import codecs
import gzip
import hashlib
import json
import logging
import mmap
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from chargpt.errors import UserError
from chargpt.files import locked, replacing, write
from chargpt.sources import Text, cache_folder
from chargpt.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer, tokenizer_of

log = logging.getLogger(__name__)

PIECE = 1 << 22  # bytes to read at a time
UNICODE = 0x110000  # the number of code points


@dataclass(frozen=True)
class Corpus:
    """An encoded text.

    Attributes:
        name: what to call the text.
        sha256: of the text's bytes.
        tokenizer: its vocabulary is the text's sorted distinct characters, or bytes.
        ids: memory-mapped, read-only, shape (ids,), uint8, uint16 or uint32.
        files: the number of files that it was read from; 1 if it was found by its hash.
    """

    name: str
    sha256: str
    tokenizer: Tokenizer
    ids: np.memmap
    files: int = 1


@dataclass(frozen=True)
class Translated:
    """Ids in another vocabulary, looked up in `table` (the new id of each old one) as they are read: a text may be
    larger than memory."""

    ids: np.ndarray
    table: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, where: slice | np.ndarray) -> np.ndarray:
        return self.table[self.ids[where]]


Ids = np.ndarray | Translated  # indexed by a slice or by an array of places


def encode_text(
    text: Text, expected: str | None = None, kind: str = CharTokenizer.kind, *, verify: bool = False
) -> Corpus:
    """Encode a text, or open it if the cache has it.

    Args:
        expected: the SHA-256 that the text must have.
        kind: one of `chargpt.tokenizer.KINDS`.
        verify: read and encode the text even if the cache has it.
    """

    def cached(sha256: str) -> Corpus | None:
        return None if verify else find_encoded(sha256, text.name, kind)

    folder, stamp = _folder(), _stamp(text.files, kind)
    corpus = cached(_index().get(stamp, ""))
    sha256, tokenizer = (corpus.sha256, corpus.tokenizer) if corpus else _survey(text, kind)
    if expected not in (None, sha256):
        raise UserError(f"{text.name} is not the text that the run began with, or has changed; start a new run for it")
    if corpus is None:
        try:
            with locked(folder):  # for which another process may have kept this one waiting, and have encoded it
                corpus = cached(sha256) or _encode(text, sha256, tokenizer)
                write(folder / "known.json", json.dumps(_index() | {stamp: sha256}).encode())
        except OSError as error:
            corpus = cached(sha256)  # in a cache that can only be read
            if corpus is None:
                elsewhere = "on Linux, XDG_CACHE_HOME names another folder for the cache"
                raise UserError(f"cannot write to {folder}: {error.strerror or error}; {elsewhere}") from error
    return replace(corpus, files=len(text.files))


def find_encoded(sha256: str, name: str, kind: str = CharTokenizer.kind) -> Corpus | None:
    """The text with this SHA-256, called `name`, if the cache has it. The hash may come from a foreign file."""
    if not re.fullmatch("[0-9a-f]{64}", str(sha256)):
        return None
    try:
        description = json.loads((_folder() / f"{sha256}.{kind}.json").read_bytes())
        tokenizer = tokenizer_of(description["characters"])
        ids = np.memmap(_ids_file(sha256, tokenizer), _dtype(tokenizer), mode="r")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Corpus(name, sha256, tokenizer, ids) if len(ids) == description.get("length") else None


def ids_in(tokenizer: Tokenizer, own: Tokenizer, ids: np.ndarray, *, skip_unknown: bool = False) -> Ids:
    """Ids in another vocabulary than their own, translated as they are read unless some are left out.

    Args:
        own: the tokenizer of these ids, of the same kind.

    Raises:
        UnknownCharacterError: the vocabulary lacks characters of the other and `skip_unknown` is false.
    """
    if own.characters is None or tokenizer.characters is None or own.characters == tokenizer.characters:
        return ids
    known = np.array([character in tokenizer for character in own.characters])
    table = np.zeros(len(known), _dtype(tokenizer))
    table[known] = tokenizer.encode(own.characters, skip_unknown=skip_unknown)
    return Translated(ids, table) if known.all() else table[ids[known[ids]]]


def read_at_random(ids: np.memmap) -> np.memmap:
    """A second map of a whole file of ids, of which Linux reads only the pages that are used, and none around them."""
    again: Any = np.memmap(ids.filename, ids.dtype, mode="r")  # type: ignore[call-overload]
    if hasattr(mmap, "MADV_RANDOM"):  # Windows lacks it
        again.base.madvise(mmap.MADV_RANDOM)
    return again


def _folder() -> Path:
    return cache_folder() / "encoded"


def _ids_file(sha256: str, tokenizer: Tokenizer) -> Path:
    return _folder() / f"{sha256}.{'bytes' if tokenizer.characters is None else _dtype(tokenizer)}"


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.min_scalar_type(tokenizer.vocab_size - 1)


def _stamp(files: list[Path], kind: str) -> str:
    """What the index knows files by: their paths, sizes and times of change."""
    found = [(os.path.realpath(file), file.stat()) for file in files]
    stamps = [(path, status.st_size, status.st_mtime_ns) for path, status in found]
    return hashlib.sha256(json.dumps([kind, stamps]).encode()).hexdigest()


def _index() -> dict[str, str]:
    """The SHA-256 of each text that was read before, by its stamp."""
    try:
        return dict(json.loads((_folder() / "known.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}


def _survey(text: Text, kind: str) -> tuple[str, Tokenizer]:
    """The first pass over a text: its SHA-256 and its vocabulary."""
    digest, seen, seen_ascii = hashlib.sha256(), np.zeros(UNICODE, bool), b""
    for raw, piece in _pieces(text.files, kind, "Reading"):
        digest.update(raw)
        if isinstance(piece, str):
            seen[_code_points(piece)] = True
        elif new := piece.translate(None, seen_ascii):  # several times as fast
            seen_ascii = bytes({*seen_ascii, *new})
    seen[list(seen_ascii)] = True
    if not seen.any():
        raise UserError(f"{text.name} is empty: there is no text")
    characters = "".join(map(chr, np.flatnonzero(seen)))
    return digest.hexdigest(), ByteTokenizer() if kind == ByteTokenizer.kind else CharTokenizer(characters)


def _encode(text: Text, sha256: str, tokenizer: Tokenizer) -> Corpus:
    """The second pass over a text: write its ids, then their description."""
    several = f", {len(text.files):,} files" if len(text.files) > 1 else ""
    what = "as bytes" if tokenizer.characters is None else f"{tokenizer.vocab_size:,} distinct characters"
    log.info(f"Encoding {text.name}{several}: {what}")
    dtype, file, digest = _dtype(tokenizer), _ids_file(sha256, tokenizer), hashlib.sha256()
    table = np.zeros(UNICODE, dtype)
    table[_code_points(tokenizer.characters or bytes(range(256)))] = np.arange(tokenizer.vocab_size)
    with replacing(file) as out:
        for raw, piece in _pieces(text.files, tokenizer.kind, "Encoding"):
            digest.update(raw)
            if isinstance(piece, bytes) and dtype == np.uint8:
                out.write(piece.translate(table[:256].data))
            else:
                out.write(table[_code_points(piece)])
        length = out.tell() // dtype.itemsize
        if digest.hexdigest() != sha256:
            raise UserError(f"{text.name} changed while it was read; run again once it is complete")
    description = {"characters": tokenizer.characters, "length": length}
    write(file.with_name(f"{sha256}.{tokenizer.kind}.json"), json.dumps(description).encode())
    return Corpus(text.name, sha256, tokenizer, np.memmap(file, dtype, mode="r"))


def _code_points(piece: bytes | str) -> np.ndarray:
    """Shape (characters,)."""
    if isinstance(piece, bytes):
        return np.frombuffer(piece, np.uint8)
    return np.frombuffer(piece.encode("utf-32-le"), np.uint32)


def _pieces(files: list[Path], kind: str, doing: str) -> Iterator[tuple[bytes, bytes | str]]:
    """A text in pieces: their bytes, and the same decoded unless they are ASCII or the text is one of bytes."""
    size = sum(file.stat().st_size for file in files)
    with tqdm(desc=doing, total=size, unit="B", unit_scale=True, delay=1, disable=None, leave=False) as bar:
        for file in files:
            begin, offset = bar.n, 0
            rest = b""  # the beginning of a character that the end of a piece cut
            try:
                with file.open("rb") as raw:
                    is_gzip = raw.peek(2).startswith(b"\x1f\x8b")  # as no UTF-8 text begins
                    stream = gzip.GzipFile(fileobj=raw) if is_gzip else raw
                    while piece := rest + (new := stream.read(PIECE)):
                        bar.update(begin + raw.tell() - bar.n)
                        if offset == 0 and kind == CharTokenizer.kind and piece.startswith(codecs.BOM_UTF8):
                            piece, offset = piece.removeprefix(codecs.BOM_UTF8), len(codecs.BOM_UTF8)
                        decoded, used = (piece, len(piece)) if kind == ByteTokenizer.kind else _decoded(piece, not new)
                        yield piece[:used], decoded
                        offset, rest = offset + used, piece[used:]
            except UnicodeDecodeError as error:
                raise _not_text(file, offset, error) from error
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise UserError(f"{file} is damaged, or not complete: {error}") from error
            except OSError as error:
                raise UserError(f"cannot read {file}: {error.strerror or error}") from error


def _decoded(piece: bytes, is_last: bool) -> tuple[bytes | str, int]:
    """A piece of UTF-8, decoded unless it is ASCII, and how many bytes of it: its end may cut a character."""
    if (at := piece.find(0)) >= 0:
        raise UnicodeDecodeError("utf-8", piece, at, at + 1, "NUL")
    return (piece, len(piece)) if piece.isascii() else codecs.utf_8_decode(piece, "strict", is_last)


def _not_text(file: Path, offset: int, error: UnicodeDecodeError) -> UserError:
    """The error for a piece of a file, which begins at a byte offset, with the encoding that it is probably in."""
    byte, where = error.object[error.start], f"at byte offset {offset + error.start}"
    wrong = f"byte 0x{byte:02x} {where} ({error.reason})"
    if offset == 0 and error.object.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        wrong, advice = "it begins as UTF-16 does", "convert it with iconv -f UTF-16 -t UTF-8"
    elif byte == 0:
        return UserError(f"{file} is binary, not text: a NUL byte {where}")
    elif byte < 0xA0 and bytes([byte]).decode("cp1252", errors="ignore"):
        advice = "if it is Windows-1252 (typographic quotes), convert it with iconv -f WINDOWS-1252 -t UTF-8"
    else:
        advice = "convert it to UTF-8 from the encoding that it is in, for example with iconv"
    return UserError(f"{file} is not UTF-8: {wrong}; {advice}, or train on its bytes: data.tokenizer=bytes")

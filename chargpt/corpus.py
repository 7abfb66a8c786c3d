"""A text, encoded once on disk.

A text is one or more files in order, plain or compressed by gzip. Its ids lie in the user's cache, in the smallest
unsigned integers that hold the vocabulary (`SHA256.uint8`, `.uint16`, `.uint32`, or `.bytes`), beside a description in
JSON. A resumed run finds its text by the hash. `known.json` finds the hash of a text by the paths, sizes and times of
its files, so that it need not be read again.

In a text of characters, `\\r\\n` and `\\r` become `\\n`, and a byte order mark at the beginning of a file is left out.
Nothing is put between files.
"""

import codecs
import gzip
import hashlib
import io
import json
import logging
import mmap
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from chargpt.errors import UserError
from chargpt.files import locked, replacing, write
from chargpt.sources import Text, cache_folder
from chargpt.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer, tokenizer_of

log = logging.getLogger(__name__)

PIECE = 1 << 22  # bytes to read at a time
UNICODE = 0x110000  # the number of code points
BOMS_OF_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
Ids = np.ndarray  # shape (ids,): uint8, uint16 or uint32


@dataclass(frozen=True)
class Corpus:
    """An encoded text.

    Attributes:
        sha256: of the text in UTF-8, or of the bytes.
        tokenizer: its vocabulary is the text's sorted distinct characters, or bytes.
        ids: memory-mapped, read-only.
    """

    name: str
    sha256: str
    tokenizer: Tokenizer
    ids: np.memmap


def encode_text(
    text: Text, expected: str | None = None, kind: str = CharTokenizer.kind, encoding: str = "utf-8"
) -> Corpus:
    """Encode a text, or open it if the cache has it.

    Args:
        expected: the SHA-256 that the text must have.
        kind: one of `chargpt.tokenizer.KINDS`.
        encoding: of the files, for a text of characters.
    """
    try:
        "".encode(encoding)
    except (LookupError, UnicodeError) as error:
        raise UserError(f"{error}; encodings are utf-8, windows-1252, latin-1, utf-16 and so on") from error
    # Latin-1 makes a character of each byte.
    encoding = codecs.lookup("latin-1" if kind == ByteTokenizer.kind else encoding).name
    folder, stamp = _folder(), _stamp(text.files, kind, encoding)
    corpus = find_encoded(_index().get(stamp, ""), text.name, kind)
    sha256, tokenizer = (corpus.sha256, corpus.tokenizer) if corpus else _survey(text, kind, encoding)
    if expected not in (None, sha256):
        raise UserError(f"{text.name} is not the text that the run began with, or has changed; start a new run for it")
    if corpus is None:
        with locked(folder):  # another process may have encoded the text in the meantime
            corpus = find_encoded(sha256, text.name, kind) or _encode(text, sha256, tokenizer, encoding)
            write(folder / "known.json", json.dumps(_index() | {stamp: sha256}).encode())
    return corpus


def find_encoded(sha256: str, name: str, kind: str = CharTokenizer.kind) -> Corpus | None:
    """The text with this SHA-256, called `name`, if the cache has it."""
    if not re.fullmatch("[0-9a-f]{64}", str(sha256)):  # it may come from a foreign file, and becomes part of a path
        return None
    try:
        description = json.loads((_folder() / f"{sha256}.{kind}.json").read_bytes())
        tokenizer = tokenizer_of(description["characters"])
        ids = np.memmap(_ids_file(sha256, tokenizer), _dtype(tokenizer), mode="r")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Corpus(name, sha256, tokenizer, ids) if len(ids) == description.get("length") else None


def ids_in(tokenizer: Tokenizer, own: Tokenizer, ids: Ids, *, skip_unknown: bool = False) -> Ids:
    """Translate ids of the tokenizer `own` to those of `tokenizer`, of the same kind; a copy only if they differ.

    Unless `skip_unknown`, a character that it lacks raises `UnknownCharacterError`.
    """
    if own.characters is None or tokenizer.characters is None or own.characters == tokenizer.characters:
        return ids
    known = np.isin([*own.characters], [*tokenizer.characters])
    table = np.zeros(len(known), _dtype(tokenizer))
    table[known] = tokenizer.encode(own.characters, skip_unknown=skip_unknown)
    return table[ids if known.all() else ids[known[ids]]]


def read_at_random(ids: np.memmap) -> np.memmap:
    """A second memory map for random access: Linux then does not read ahead."""
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


def _stamp(files: list[Path], kind: str, encoding: str) -> str:
    """The key of files in the index, which changes with their paths, sizes and times of change."""
    stats = [(os.path.realpath(file), file.stat()) for file in files]
    stamps = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
    return hashlib.sha256(json.dumps([kind, encoding, stamps]).encode()).hexdigest()


def _index() -> dict[str, str]:
    """The SHA-256 of each text that was read before, by its stamp."""
    try:
        return dict(json.loads((_folder() / "known.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}


def _survey(text: Text, kind: str, encoding: str) -> tuple[str, Tokenizer]:
    """The first pass over a text: its SHA-256 and its vocabulary."""
    digest, seen = hashlib.sha256(), np.zeros(UNICODE, bool)
    for content, code_points in _pieces(text.files, kind, encoding):
        digest.update(content)
        seen[code_points] = True
    if seen.sum() < 2:
        raise UserError(f"{text.name} is empty, or one character again and again: there is nothing to learn")
    characters = "".join(map(chr, np.flatnonzero(seen)))
    return digest.hexdigest(), ByteTokenizer() if kind == ByteTokenizer.kind else CharTokenizer(characters)


def _encode(text: Text, sha256: str, tokenizer: Tokenizer, encoding: str) -> Corpus:
    """The second pass over a text: write its ids, then their description."""
    what = "as bytes" if tokenizer.characters is None else f"{tokenizer.vocab_size:,} distinct characters"
    log.info(f"Encoding {text.name}: {what}")
    dtype, file, digest = _dtype(tokenizer), _ids_file(sha256, tokenizer), hashlib.sha256()
    id_of = np.zeros(UNICODE, dtype)
    id_of[_code_points(tokenizer.characters or "".join(map(chr, range(256))))] = np.arange(tokenizer.vocab_size)
    with replacing(file) as half, half.open("wb") as out:
        for content, code_points in _pieces(text.files, tokenizer.kind, encoding):
            digest.update(content)
            out.write(id_of[code_points])
        length = out.tell() // dtype.itemsize
        if digest.hexdigest() != sha256:
            raise UserError(f"{text.name} changed while it was read; run again once it is complete")
    description = {"characters": tokenizer.characters, "length": length}
    write(file.with_name(f"{sha256}.{tokenizer.kind}.json"), json.dumps(description).encode())
    return Corpus(text.name, sha256, tokenizer, np.memmap(file, dtype, mode="r"))


def _code_points(text: str) -> np.ndarray:
    """Shape (characters,)."""
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _pieces(files: list[Path], kind: str, encoding: str) -> Iterator[tuple[bytes, np.ndarray]]:
    """A text in pieces: what identifies it, its bytes or its characters in UTF-8, and the code points."""
    of_characters = kind == CharTokenizer.kind
    for file in files:
        decode: Any = codecs.getincrementaldecoder("utf-8-sig" if encoding == "utf-8" else encoding)()
        decoder, end, raw = io.IncrementalNewlineDecoder(decode, translate=of_characters), 0, b" "
        try:
            with file.open("rb") as opened:
                is_gzip = opened.peek(2).startswith(b"\x1f\x8b")  # gzip's first bytes; no UTF-8 text begins so
                stream = gzip.GzipFile(fileobj=opened) if is_gzip else opened
                while raw:
                    raw = stream.read(PIECE)
                    end += len(raw)
                    if encoding == "utf-8" and b"\0" in raw and not raw.startswith(BOMS_OF_UTF16):
                        advice = "save it as plain text, or train on its bytes: data.tokenizer=bytes"
                        raise UserError(f"{file} is binary, not text: it has NUL bytes; {advice}")
                    piece = decoder.decode(raw, final=not raw)
                    yield piece.encode("utf-8" if of_characters else encoding), _code_points(piece)
        except UnicodeDecodeError as error:
            raise _not_text(file, end - len(error.object), error, encoding) from error
        except (OSError, EOFError, zlib.error, UnicodeError) as error:
            raise UserError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error


def _not_text(file: Path, offset: int, error: UnicodeDecodeError, encoding: str) -> UserError:
    """What to say of bytes that are no text in this encoding, which begin at this offset of the file."""
    byte, advice = error.object[error.start], "name its encoding: data.encoding= (--encoding)"
    if offset == 0 and error.object.startswith(BOMS_OF_UTF16):
        advice = "it begins as UTF-16 does: data.encoding=utf-16 (--encoding utf-16)"
    elif 0x91 <= byte <= 0x97:
        advice = "it looks like Windows-1252 (typographic quotes): data.encoding=windows-1252 (--encoding windows-1252)"
    wrong = f"byte 0x{byte:02x} at byte offset {offset + error.start} ({error.reason})"
    return UserError(
        f"{file} is not {encoding.upper()}: {wrong}; {advice}, or train on its bytes: data.tokenizer=bytes"
    )

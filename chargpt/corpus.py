"""A text in its encoded form on disk.

A text is one or more UTF-8 files read in order. It is encoded once, into a file of ids in the smallest unsigned integer
type that fits the vocabulary (`SHA256.uint8`, `.uint16` or `.uint32`); a small JSON file beside it (`SHA256.json`)
describes them. Both are named by the text's SHA-256 and follow from the text alone, so that a run finds its text again
by the hash. Each is put in place by one rename: a reader sees a whole file or none.
"""

import codecs
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from chargpt.cache import cache_folder, locked, replacing, tidy
from chargpt.errors import UserError, one_line
from chargpt.files import cannot_read
from chargpt.sources import Text
from chargpt.tokenizer import CharTokenizer

log = logging.getLogger(__name__)

PIECE = 1 << 22  # bytes read at a time: the memory that encoding takes is a small multiple of this
UNICODE = 0x110000  # how many code points there are


@dataclass(frozen=True)
class Corpus:
    """An encoded text.

    Attributes:
        name: what the text is, for people.
        sha256: of the text's bytes.
        tokenizer: its vocabulary is the text's sorted distinct characters.
        ids: memory-mapped, read-only, shape (characters,), uint8, uint16 or uint32.
    """

    name: str
    sha256: str
    tokenizer: CharTokenizer
    ids: np.ndarray


def encode_text(text: Text, expected: str | None = None) -> Corpus:
    """Encode a text, unless that was done before, and open it.

    Args:
        expected: the SHA-256 that the text must have.

    Raises:
        UserError: it is empty, binary or not UTF-8, or another than expected, or cannot be read, or the cache cannot be
            written.
    """
    name, files, _ = text
    with _bar("Reading", files) as bar:
        sha256, characters = _survey(files, bar)
    if not characters:
        raise UserError(f"{name} is empty: there is no text to train on")
    if expected not in (None, sha256):
        raise UserError(f"{name} is not the text that the run began with, or has changed; start a new run for it")
    corpus = find_encoded(sha256, name)
    if corpus is not None:
        tidy(_folder())
        return corpus
    with locked(_folder()):
        # Another process may have encoded it while this one waited.
        return find_encoded(sha256, name) or _encode(text, sha256, characters)


def find_encoded(sha256: str, name: str) -> Corpus | None:
    """What the cache holds of the text with this SHA-256: both files are there and spell it. Otherwise None.

    Args:
        sha256: may come from a stranger's file, as may the name.
        name: what the text is called.
    """
    if not re.fullmatch("[0-9a-f]{64}", str(sha256)):
        return None
    description_file = _folder() / f"{sha256}.json"
    try:
        if not description_file.is_file():  # to open a pipe would take for ever
            return None
        found = json.loads(description_file.read_bytes())
        tokenizer = CharTokenizer(found["characters"])
        dtype = _dtype(tokenizer)
        ids_file = description_file.with_suffix(f".{dtype}")
        if found["text_sha256"] != sha256 or not ids_file.is_file():
            return None
        corpus = Corpus(one_line(name), sha256, tokenizer, np.memmap(ids_file, dtype, mode="r"))
        return corpus if _spells(corpus) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def ids_in(tokenizer: CharTokenizer, corpus: Corpus, *, skip_unknown: bool = False) -> np.ndarray:
    """The ids of a text in a vocabulary: its own, memory-mapped, or for another one in memory.

    Raises:
        UnknownCharacterError: the vocabulary lacks characters of the text and `skip_unknown` is false.
    """
    own = corpus.tokenizer.characters
    if own == tokenizer.characters:
        return corpus.ids
    tokenizer.encode(own, skip_unknown=skip_unknown)
    known = np.array([character in tokenizer for character in own])
    table = np.zeros(len(own), _dtype(tokenizer))
    table[known] = tokenizer.encode(own, skip_unknown=True)
    return table[corpus.ids if known.all() else corpus.ids[known[corpus.ids]]]


def _folder() -> Path:
    return cache_folder() / "encoded"


def _encode(text: Text, sha256: str, characters: str) -> Corpus:
    """A second pass over a text, once its characters are known, and the files that this gives.

    Raises:
        UserError: it is no longer the text of the first pass, or the cache cannot be written.
    """
    name, files, _ = text
    tokenizer = CharTokenizer(characters)
    log.info(f"Encoding {name}: {tokenizer.vocab_size:,} distinct characters")
    dtype = _dtype(tokenizer)
    description_file = _folder() / f"{sha256}.json"
    ids_file = description_file.with_suffix(f".{dtype}")
    table = np.zeros(UNICODE, dtype)
    table[[ord(char) for char in characters]] = np.arange(tokenizer.vocab_size)
    read = hashlib.sha256()
    with replacing(ids_file) as out, _bar("Encoding", files) as bar:
        for piece in _pieces(files, bar, read.update):
            out.write(table[_code_points(piece)])
        if read.hexdigest() != sha256:
            raise UserError(f"{name} changed while it was read; run again once it is complete")
    description = {"text_sha256": sha256, "characters": characters}
    with replacing(description_file) as out:
        out.write(json.dumps(description, ensure_ascii=False).encode())
    try:
        return Corpus(name, sha256, tokenizer, np.memmap(ids_file, dtype, mode="r"))
    except OSError as error:  # a file system may lack the means
        raise cannot_read(ids_file, error) from error


def _dtype(tokenizer: CharTokenizer) -> np.dtype:
    """The smallest type for its ids."""
    return np.min_scalar_type(tokenizer.vocab_size - 1)


def _spells(corpus: Corpus) -> bool:
    """Whether the ids and the vocabulary give back the text that the corpus is named by."""
    digest = hashlib.sha256()
    try:
        table = _code_points(corpus.tokenizer.characters)
        for start in range(0, len(corpus.ids), PIECE):
            digest.update(table[corpus.ids[start : start + PIECE]].tobytes().decode("utf-32-le").encode())
    except (ValueError, IndexError):  # what is no character, and what is not in the vocabulary
        return False
    return digest.hexdigest() == corpus.sha256


def _pieces(files: list[Path], bar: tqdm, told: Callable[[bytes], object]) -> Iterator[bytes | str]:
    """The text in pieces of at most `PIECE` bytes: as bytes where a piece is plain ASCII, otherwise decoded.

    Args:
        told: is called with all bytes as they are read, a hash's `update`.

    Raises:
        UserError: a file cannot be read, is binary (has a NUL byte) or is not UTF-8; the byte's offset is given.
    """
    for file in files:
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            with file.open("rb") as stream:
                offset = 0
                while piece := stream.read(PIECE):
                    told(piece)
                    if (at := piece.find(0)) >= 0:
                        raise UserError(
                            f"{one_line(file)} is binary, not text: a NUL byte at byte offset {offset + at}"
                        )
                    pending = len(decoder.getstate()[0])  # bytes of a character that the last edge cut
                    if piece.isascii() and not pending:
                        yield piece
                    else:
                        offset -= pending
                        yield decoder.decode(piece)
                        offset += pending
                    offset += len(piece)
                    bar.update(len(piece))
                offset -= len(decoder.getstate()[0])
                decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise UserError(
                f"{one_line(file)} is not UTF-8: byte 0x{byte:02x} at byte offset {offset + error.start}"
                f" ({error.reason}); convert it first, for example with iconv -f LATIN1 -t UTF-8"
            ) from error
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


def _survey(files: list[Path], bar: tqdm) -> tuple[str, str]:
    """One pass over the text: its SHA-256 and its sorted distinct characters."""
    digest, seen = hashlib.sha256(), np.zeros(UNICODE, bool)
    for piece in _pieces(files, bar, digest.update):
        seen[_code_points(piece)] = True
    return digest.hexdigest(), "".join(map(chr, np.flatnonzero(seen)))

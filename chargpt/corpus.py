"""A text in its encoded form on disk.

A text is one or more UTF-8 files read in order. It is encoded once, into a file of ids in the smallest unsigned integer
type that fits the vocabulary; a small JSON file beside it describes them. Both are named by the text's SHA-256 and
follow from the text alone, and each is put in place by one rename: processes that encode the same text at once write
the same bytes, and a reader sees a whole file or none.
"""

import codecs
import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from chargpt.cache import cache_folder, replacing
from chargpt.errors import UserError
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


def encode_text(text: Text) -> Corpus:
    """Encode a text, unless that was done before, and open it.

    Raises:
        UserError: it is empty, binary or not UTF-8, or cannot be read, or the cache cannot be written.
    """
    name, files, _ = text
    with _bar("Reading", files) as bar:
        sha256, characters, length = _survey(files, bar)
    if not length:
        raise UserError(f"{name} is empty: there is no text to train on")
    tokenizer = CharTokenizer(characters)
    dtype = np.min_scalar_type(tokenizer.vocab_size - 1)
    ids_file = cache_folder() / "encoded" / f"{sha256}.{dtype}"
    description_file = ids_file.with_suffix(".json")
    description = {"text_sha256": sha256, "characters": characters, "length": length}
    if not _is_whole(ids_file, description_file, description):
        log.info(f"Encoding {name}: {length:,} characters, {tokenizer.vocab_size:,} of them distinct")
        table = np.zeros(UNICODE, dtype)
        table[[ord(char) for char in characters]] = np.arange(tokenizer.vocab_size)
        digest = hashlib.sha256()
        with replacing(ids_file) as out, _bar("Encoding", files) as bar:
            for piece in _pieces(files, bar):
                ids = table[_code_points(piece)]
                digest.update(ids)
                out.write(ids)
            if out.tell() != length * dtype.itemsize:
                raise UserError(f"{name} changed while it was read; run again once it is complete")
        with replacing(description_file) as out:
            out.write(json.dumps(description | {"ids_sha256": digest.hexdigest()}, ensure_ascii=False).encode())
    return Corpus(name, sha256, tokenizer, np.memmap(ids_file, dtype, mode="r", shape=(length,)))


def _is_whole(ids_file: Path, description_file: Path, description: dict) -> bool:
    """Whether both files are there, belong to this text and have the bytes that were written."""
    try:
        found = json.loads(description_file.read_bytes())
        if {key: found.get(key) for key in description} != description:
            return False
        with ids_file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == found.get("ids_sha256")
    except (OSError, ValueError, AttributeError):
        return False


def _pieces(files: list[Path], bar: tqdm) -> Iterator[bytes | str]:
    """The text in pieces of at most `PIECE` bytes: as bytes where a piece is plain ASCII, otherwise decoded.

    Raises:
        UserError: a file cannot be read, is binary (has a NUL byte) or is not UTF-8; the byte's offset is given.
    """
    for file in files:
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            with file.open("rb") as stream:
                offset = 0
                while piece := stream.read(PIECE):
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
                    bar.update(len(piece))
                offset -= len(decoder.getstate()[0])
                decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise UserError(
                f"{file} is not UTF-8: byte 0x{byte:02x} at byte offset {offset + error.start} ({error.reason});"
                " convert it first, for example with iconv -f LATIN1 -t UTF-8"
            ) from error
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from error


def _bar(what: str, files: list[Path]) -> tqdm:
    """A bar of the bytes read, on a terminal, from the first second on."""
    size = sum(file.stat().st_size for file in files if file.exists())
    return tqdm(desc=what, total=size, unit="B", unit_scale=True, delay=1, disable=None, leave=False)


def _code_points(piece: bytes | str) -> np.ndarray:
    """The piece's code points, shape (characters,)."""
    if isinstance(piece, bytes):
        return np.frombuffer(piece, np.uint8)
    return np.frombuffer(piece.encode("utf-32-le"), np.uint32)


def _survey(files: list[Path], bar: tqdm) -> tuple[str, str, int]:
    """One pass over the text: its SHA-256, its sorted distinct characters and its length in characters."""
    digest, seen, length = hashlib.sha256(), np.zeros(UNICODE, bool), 0
    for piece in _pieces(files, bar):
        digest.update(piece if isinstance(piece, bytes) else piece.encode())
        codes = _code_points(piece)
        seen[codes] = True
        length += len(codes)
    return digest.hexdigest(), "".join(map(chr, np.flatnonzero(seen))), length

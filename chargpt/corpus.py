"""Where text comes from, and its encoded form on disk.

A text is one or more UTF-8 files read in order. It is encoded once, into a file of ids in the smallest unsigned integer
type that fits the vocabulary; a small JSON file beside it describes them. Both are named by the text's SHA-256 and
follow from the text alone, and each is put in place by one rename: processes that encode the same text at once write
the same bytes, and a reader sees a whole file or none.
"""

import codecs
import glob
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from chargpt.errors import UserError
from chargpt.tokenizer import CharTokenizer

log = logging.getLogger(__name__)

SOURCES = ("shakespeare", "pydocs", "file")
SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SHAKESPEARE_FILE = "tinyshakespeare.txt"
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


def load_corpus(source: str, path: str | None = None, fallback: str | None = None) -> Corpus:
    """Find a text, encode it unless that was done before, and open it.

    Args:
        source: `shakespeare`, `pydocs` or `file`.
        path: for `file`, a file, a folder (all its `.txt` files, at any depth, sorted by name) or a glob.
        fallback: the source to use, with a warning, when Shakespeare is neither on this machine nor to be had.

    Raises:
        UserError: there is no such text, or it is empty, binary, not UTF-8 or not the expected file.
    """
    for name, value in (("data.source", source), ("data.fallback", fallback)):
        if value not in SOURCES and not (name == "data.fallback" and value is None):
            raise UserError(f"{name} must be one of {', '.join(SOURCES)}; got {value!r}")
    try:
        name, files = _find(source, path)
    except _NoShakespeareError as error:
        if fallback in (None, "shakespeare"):
            raise UserError(f"{error}; {_SUPPLY}") from None
        name, files = _find(fallback, path)
        rule = "!" * 100
        log.warning(
            f"{rule}\nNOT TRAINING ON SHAKESPEARE, but on: {name}.\n{error}.\n"
            f"To train on it, {_SUPPLY}.\nTo insist on it, say data.fallback=null: then this is an error.\n{rule}"
        )
    return _open_encoded(name, files)


_SUPPLY = (
    f"connect to the network, or set CHARGPT_DATA_DIR to a folder that holds {SHAKESPEARE_FILE}"
    f" ({SHAKESPEARE_URL}), or train on a text of your own: data=file data.path=my.txt"
)


class _NoShakespeareError(Exception):
    """The file is not on this machine and the download failed."""


def _cache_folder() -> Path:
    """The user's cache for this project (on Linux `~/.cache/chargpt`, or below `XDG_CACHE_HOME`)."""
    import pooch  # here and below: takes a while to import, and only training needs it

    return Path(pooch.os_cache("chargpt"))


def _find(source: str, path: str | None) -> tuple[str, list[Path]]:
    if source == "shakespeare":
        return "tiny Shakespeare", [_shakespeare()]
    if source == "pydocs":
        return "the Python language reference (pydoc_data.topics)", [_pydocs()]
    if not path:
        raise UserError("data=file needs a text: data.path=my.txt (a file, a folder or a glob)")
    root = Path(path)
    if root.is_dir():
        files = sorted(file for file in root.rglob("*.txt") if file.is_file())
        if not files:
            raise UserError(f"the folder {path} holds no .txt file; a glob names others: data.path='{path}/**/*.md'")
    elif root.exists():
        files = [root]
    else:
        files = sorted(Path(match) for match in glob.glob(path, recursive=True) if Path(match).is_file())
        if not files:
            raise UserError(f"no text at data.path={path}: no such file, folder or match of a glob")
    return path, files


def _shakespeare() -> Path:
    """The lecture's text: from `CHARGPT_DATA_DIR` or the user's cache, downloaded into it when it is not there."""
    import pooch

    folder = Path(os.environ.get("CHARGPT_DATA_DIR") or _cache_folder())
    file = folder / SHAKESPEARE_FILE
    if not file.exists():
        log.info(f"Downloading tiny Shakespeare (1.1 MB) to {folder}")
        pooch.get_logger().setLevel("WARNING")
        try:
            pooch.retrieve(
                SHAKESPEARE_URL,
                known_hash=SHAKESPEARE_SHA256,
                fname=file.name,
                path=folder,
                downloader=pooch.HTTPDownloader(progressbar=True, timeout=(3, 10)),
            )
        except Exception as error:  # a look-up, a connection, a proxy, a folder, a hash: each fails in a way of its own
            raise _NoShakespeareError(
                f"Tiny Shakespeare is not at {file}, and the download failed ({type(error).__name__}: {error})"
            ) from error
    digest = hashlib.sha256(_read(file)).hexdigest()
    if digest != SHAKESPEARE_SHA256:
        raise UserError(
            f"{file} is not tiny Shakespeare: its SHA-256 is {digest}, not {SHAKESPEARE_SHA256};"
            f" remove it, or train on it as it is with data=file data.path={file}"
        )
    return file


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error


def _pydocs() -> Path:
    """The language reference that ships inside CPython, as a file: its topics in order of name."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics)).encode()
    file = _cache_folder() / "pydocs.txt"
    if not file.exists() or file.read_bytes() != text:  # another Python has another text
        with _replacing(file) as out:
            out.write(text)
    return file


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
    """Bytes read, for a text so long, and a terminal so patient, that one would wonder."""
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


@contextmanager
def _replacing(target: Path) -> Iterator[BinaryIO]:
    """Write a file beside its target and rename it into place, so that nobody sees half of it."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=target.name, suffix=".tmp", delete=False) as out:
            try:
                yield out
                out.flush()
                os.replace(out.name, target)
            except BaseException:
                os.unlink(out.name)
                raise
    except OSError as error:
        raise UserError(
            f"cannot write {target}: {error.strerror}; XDG_CACHE_HOME names another folder for the cache"
        ) from error


def _open_encoded(name: str, files: list[Path]) -> Corpus:
    """Reuse the encoded text when it is whole, and write it otherwise."""
    with _bar("Reading", files) as bar:
        sha256, characters, length = _survey(files, bar)
    if not length:
        raise UserError(f"{name} is empty: there is no text to train on")
    tokenizer = CharTokenizer(characters)
    dtype = np.min_scalar_type(tokenizer.vocab_size - 1)
    ids_file = _cache_folder() / "encoded" / f"{sha256}.{dtype}"
    description_file = ids_file.with_suffix(".json")
    description = {"text_sha256": sha256, "characters": characters, "length": length}
    if not _is_whole(ids_file, description_file, description):
        log.info(f"Encoding {name}: {length:,} characters, {tokenizer.vocab_size:,} of them distinct")
        table = np.zeros(UNICODE, dtype)
        table[[ord(char) for char in characters]] = np.arange(tokenizer.vocab_size)
        digest = hashlib.sha256()
        with _replacing(ids_file) as out, _bar("Encoding", files) as bar:
            for piece in _pieces(files, bar):
                ids = table[_code_points(piece)]
                digest.update(ids)
                out.write(ids)
            if out.tell() != length * dtype.itemsize:
                raise UserError(f"{name} changed while it was read; run again once it is complete")
        with _replacing(description_file) as out:
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

"""Where text comes from: a table of sources, each of which gives UTF-8 files to read in order."""

import hashlib
import io
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from chargpt.cache import cache_folder, locked, replacing
from chargpt.errors import UserError, first_line
from chargpt.legacy_files import cannot_read, identity, matches, status

log = logging.getLogger(__name__)

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SHAKESPEARE_FILE = "tinyshakespeare.txt"


class Text(NamedTuple):
    """A text that has not been read yet: its name, for people, its files in order, and the source that it is from."""

    name: str
    files: list[Path]
    source: str = ""  # `find_text` says it


class UnavailableError(UserError):
    """The text is not on this machine and cannot be brought here now; another source may do instead."""


def find_text(source: str, path: str | None = None, fallback: str | None = None) -> Text:
    """The text of a source.

    Args:
        source: a name in `SOURCES`.
        path: for `file`, a file, a folder (all its `.txt` and `.txt.gz` files, at any depth, sorted by name; of two
            that differ in `.gz` only, the plain one) or a glob; a file that has several names counts once. Any may be
            compressed by gzip.
        fallback: the source to use, with a warning, where the first one is unavailable.

    Raises:
        UserError: there is no such text.
    """
    try:
        return SOURCES[source](path)._replace(source=source)
    except UnavailableError as error:
        if fallback in (None, source):
            raise
        text = SOURCES[fallback](path)._replace(source=fallback)
        rule = "!" * 100
        log.warning(
            f"{rule}\nNOT TRAINING ON {source.upper()}, but on: {text.name}.\n{error}.\n"
            f"To insist on it, say data.fallback=null: then this is an error.\n{rule}"
        )
        return text


def shakespeare(path: str | None) -> Text:
    """The lecture's text: from `CHARGPT_DATA_DIR` or the user's cache, downloaded into it when it is not there."""
    folder = Path(os.environ.get("CHARGPT_DATA_DIR") or cache_folder())
    file = folder / SHAKESPEARE_FILE
    if not os.path.lexists(file):
        try:
            with locked(folder, leftovers=f"{SHAKESPEARE_FILE}.*.tmp"):  # the folder may be the user's own
                if not os.path.lexists(file):  # another process may have brought it meanwhile
                    content = _downloaded(folder)
                    with replacing(file) as out:
                        out.write(content)
        except Exception as error:  # a look-up, a connection, a proxy, a folder, a hash: each fails in a way of its own
            raise UnavailableError(
                f"Tiny Shakespeare is not at {file}, and the download failed ({type(error).__name__}:"
                f" {first_line(error)}). To train on it, connect to the network, or set CHARGPT_DATA_DIR to a folder"
                f" that holds {SHAKESPEARE_FILE} ({SHAKESPEARE_URL}), or train on a text of your own:"
                " data=file data.path=my.txt"
            ) from error
    identity(file)
    try:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise cannot_read(file, error) from error
    if digest != SHAKESPEARE_SHA256:
        raise UserError(
            f"{file} is not tiny Shakespeare: its SHA-256 is {digest}, not {SHAKESPEARE_SHA256};"
            f" remove it, or train on it as it is with data=file data.path={file}"
        )
    return Text("tiny Shakespeare", [file])


def _downloaded(folder: Path) -> bytes:
    """Tiny Shakespeare from the network, in memory: nothing of it is on disk before its hash is known to be right.

    Args:
        folder: where it will go, to be told.
    """
    import pooch  # takes a while to import

    log.info(f"Downloading tiny Shakespeare (1.1 MB) to {folder}")
    content = io.BytesIO()
    pooch.HTTPDownloader(progressbar=True, timeout=(3, 10))(SHAKESPEARE_URL, content, None)
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    if digest != SHAKESPEARE_SHA256:
        raise UserError(f"the SHA-256 hash of what came is {digest}, not {SHAKESPEARE_SHA256}")
    return content.getvalue()


def pydocs(path: str | None) -> Text:
    """The language reference that ships inside CPython, as a file: its topics in order of name."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics)).encode()
    file = cache_folder() / "pydocs.txt"
    try:
        there = file.is_file() and file.read_bytes() == text  # another Python has another text
    except OSError:
        there = False
    if not there:
        with locked(file.parent), replacing(file) as out:
            out.write(text)
    return Text("the Python language reference (pydoc_data.topics)", [file])


def file(path: str | None, said: str = "data.path=") -> Text:
    """A file, a folder's texts, or what a glob matches.

    Args:
        said: by what the path was given, for messages.

    Raises:
        UserError: there is no such text.
    """
    if not path:
        raise UserError(f"a text is missing: {said}my.txt (a file, a folder or a glob)")
    name = path
    if "\0" in path or any(0xD800 <= ord(char) < 0xE000 for char in path):
        raise UserError(f"{said}{name} is not a name that UTF-8 can write; a folder above it or a glob can be")
    root = Path(os.path.expanduser(path))
    found = status(root)
    if found is None:
        files = matches(Path(root.anchor), root.parts[bool(root.anchor) :], hidden=False)
        if not files:
            raise UserError(f"no text at {said}{name}: no such file, folder or match of a glob")
    elif stat.S_ISDIR(found.st_mode):
        files = matches(root, ("**", "*.txt"), hidden=True)
        plain = {os.fspath(file) for file in files}
        compressed = matches(root, ("**", "*.txt.gz"), hidden=True)
        files += [file for file in compressed if os.fspath(file).removesuffix(".gz") not in plain]
        if not files:
            raise UserError(
                f"the folder {name} holds no .txt or .txt.gz file; a glob names others: {said}'{name}/**/*.md'"
            )
    else:
        files = [root]
    once = {identity(file): file for file in sorted(files, reverse=True)}  # of several names, the first
    return Text(name, sorted(once.values()), "file")


SOURCES: dict[str, Callable[[str | None], Text]] = {each.__name__: each for each in (shakespeare, pydocs, file)}

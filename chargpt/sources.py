"""Where text comes from: a table of sources, each of which gives UTF-8 files to read in order."""

import glob
import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from chargpt.cache import cache_folder, replacing
from chargpt.errors import UserError

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
        path: for `file`, a file, a folder (all its `.txt` files, at any depth, sorted by name) or a glob.
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
    import pooch  # takes a while to import

    folder = Path(os.environ.get("CHARGPT_DATA_DIR") or cache_folder())
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
            raise UnavailableError(
                f"Tiny Shakespeare is not at {file}, and the download failed ({type(error).__name__}: {error}). To"
                f" train on it, connect to the network, or set CHARGPT_DATA_DIR to a folder that holds"
                f" {SHAKESPEARE_FILE} ({SHAKESPEARE_URL}), or train on a text of your own: data=file data.path=my.txt"
            ) from error
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    if digest != SHAKESPEARE_SHA256:
        raise UserError(
            f"{file} is not tiny Shakespeare: its SHA-256 is {digest}, not {SHAKESPEARE_SHA256};"
            f" remove it, or train on it as it is with data=file data.path={file}"
        )
    return Text("tiny Shakespeare", [file])


def pydocs(path: str | None) -> Text:
    """The language reference that ships inside CPython, as a file: its topics in order of name."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics)).encode()
    file = cache_folder() / "pydocs.txt"
    if not file.exists() or file.read_bytes() != text:  # another Python has another text
        with replacing(file) as out:
            out.write(text)
    return Text("the Python language reference (pydoc_data.topics)", [file])


def file(path: str | None) -> Text:
    """A file, a folder's `.txt` files, or what a glob matches."""
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
    return Text(path, files)


SOURCES: dict[str, Callable[[str | None], Text]] = {each.__name__: each for each in (shakespeare, pydocs, file)}

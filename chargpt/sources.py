"""Where text comes from: a table of sources, each of which gives files to read in order."""

import glob
import hashlib
import logging
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from chargpt.errors import UserError, first_line
from chargpt.files import find, locked, write

log = logging.getLogger(__name__)

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SHAKESPEARE_FILE = "tinyshakespeare.txt"


class Text(NamedTuple):
    """A text that has not been read yet: its name, and its files in order."""

    name: str
    files: list[Path]


def cache_folder() -> Path:
    """Where this project caches: on Linux `~/.cache/chargpt`, or below `XDG_CACHE_HOME`."""
    import pooch  # takes a while to import, and only training needs it

    return Path(pooch.os_cache("chargpt"))


def shakespeare(path: object) -> Text:
    """The lecture's text: from `CHARGPT_DATA_DIR` or the user's cache, downloaded into it if it is not there."""
    folder = Path(os.environ.get("CHARGPT_DATA_DIR") or cache_folder()).expanduser()
    file = folder / SHAKESPEARE_FILE
    if not file.exists():
        import pooch

        log.info(f"Downloading tiny Shakespeare (1.1 MB) to {folder}")
        pooch.get_logger().setLevel(logging.WARNING)
        try:
            http = pooch.HTTPDownloader(progressbar=True, timeout=(3, 10))
            pooch.retrieve(SHAKESPEARE_URL, f"sha256:{SHAKESPEARE_SHA256}", SHAKESPEARE_FILE, folder, downloader=http)
        except Exception as error:  # of name resolution, a connection, a proxy, a folder, a hash
            raise UserError(
                f"cannot download tiny Shakespeare ({type(error).__name__}: {first_line(error)}). Connect to the"
                f" network, put {SHAKESPEARE_URL} at {file}, or train on Python's documentation: data=pydocs"
            ) from error
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest != SHAKESPEARE_SHA256:
        wrong = f"{file} is not tiny Shakespeare: its SHA-256 is {digest}, not {SHAKESPEARE_SHA256}"
        raise UserError(f"{wrong}; remove it, or train on it as it is with data=file data.path={file}")
    return Text("tiny Shakespeare", [file])


def pydocs(path: object) -> Text:
    """The language reference that ships inside CPython: its topics in order of name."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics)).encode()
    file = cache_folder() / "pydocs.txt"
    if not file.is_file() or file.read_bytes() != text:  # another Python has another text
        with locked(file.parent):
            write(file, text)
    return Text("the Python language reference (pydoc_data.topics)", [file])


def find_files(path: str | list[str] | None, option: str = "data.path=") -> Text:
    """A text of files.

    Args:
        path: a file, a folder (its `.txt` and `.txt.gz` files at any depth, without hidden ones), a glob, or a list of
            these. A file of several names counts once.
        option: what the path was given by, for messages.
    """
    paths = [path] if isinstance(path, str) else path or []
    if not all(paths) or not paths:
        raise UserError(f"a text is missing: {option}my.txt (a file, a folder, a glob or a list of these)")
    files: dict[str, Path] = {}
    for each in paths:
        # An accented letter may be one character or two: some systems store names in the other form than is typed.
        forms = (each, unicodedata.normalize("NFC", each), unicodedata.normalize("NFD", each))
        found = next(filter(None, map(_files_at, forms)), [])
        if not found:
            wanted = "a file, a folder with .txt or .txt.gz files, or a glob such as 'folder/**/*.md'"
            raise UserError(f"no text at {option}{each}: it takes {wanted}")
        for file in found:
            files.setdefault(os.path.realpath(file), file)
    count = f" ({len(files):,} files)" if len(files) > 1 else ""
    return Text(", ".join(each.rstrip("/") for each in paths) + count, list(files.values()))


def _files_at(path: str) -> list[Path]:
    name = os.path.expanduser(path)
    if os.path.isfile(name):
        return [Path(name)]
    if os.path.isdir(name):
        plain = find(name, "*.txt")
        return sorted([*plain, *(file for file in find(name, "*.txt.gz") if file.with_suffix("") not in plain)])
    return sorted(Path(found) for found in glob.glob(name, recursive=True) if os.path.isfile(found))


SOURCES: dict[str, Callable[..., Text]] = {"shakespeare": shakespeare, "pydocs": pydocs, "file": find_files}

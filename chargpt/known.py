"""Files that have been read before, known again without being read: by their real paths, sizes, inodes and times of
change.

What was found out about files is kept in the user's cache, as a small JSON file for each list of files. A change that
alters none of these is not noticed. Where the clock of a file system is coarse, two changes in quick succession can be
such, so nothing is kept of a file that changed only just now.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from chargpt.cache import cache_folder, replacing, tidy
from chargpt.errors import UserError

JUST_NOW = 2.0  # seconds: the coarsest clock of a file system in use, that of FAT


class Stamp(NamedTuple):
    """By what a file is known again: times of change (of its content, of its inode) in nanoseconds, size in bytes."""

    path: str
    device: int
    inode: int
    size: int
    changed: int
    inode_changed: int


class Stamps(NamedTuple):
    """Those of several files, and when they were taken, in seconds since 1970."""

    files: list[Stamp]
    taken: float


def stamps_of(files: Sequence[Path]) -> Stamps:
    """By what these files are known again.

    Raises:
        OSError: there is no such file.
    """
    taken = time.time()
    found = [(os.path.realpath(file), file.stat()) for file in files]
    stamps = [Stamp(path, st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns) for path, st in found]
    return Stamps(stamps, taken)


def remember(what: str, files: Sequence[Path], before: Stamps, answer: str, *, ours: bool = False) -> None:
    """Keep what was found out about files. It is left out where it cannot be kept at once, or is not certain.

    Args:
        what: the question that was answered.
        before: the stamps of the files, from before they were read.
        ours: nobody else writes to the files, so that they are known at once.
    """
    latest = max((max(stamp.changed, stamp.inode_changed) for stamp in before.files), default=0) / 1e9
    if not all(stamp.inode for stamp in before.files) or (not ours and before.taken - latest < JUST_NOW):
        return
    with contextlib.suppress(OSError, UserError):  # a cache that is read-only, or at which another process is at work
        file = _file(what, before)
        if before.files == stamps_of(files).files:
            file.parent.mkdir(parents=True, exist_ok=True)
            tidy(file.parent)
            with FileLock(file.parent / ".lock", blocking=False), replacing(file) as out:
                out.write(json.dumps({"files": before.files, "answer": answer}).encode())


def recall(what: str, stamps: Stamps) -> str | None:
    """What was found out about these files, if they are as they were; else None."""
    try:
        file = _file(what, stamps)
        if not file.is_file():  # to open a pipe would take for ever
            return None
        kept = json.loads(file.read_bytes())
        return str(kept["answer"]) if kept["files"] == [list(stamp) for stamp in stamps.files] else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _file(what: str, stamps: Stamps) -> Path:
    names = os.fsencode("\0".join([what, *(stamp.path for stamp in stamps.files)]))
    return cache_folder() / "known" / f"{hashlib.sha256(names).hexdigest()}.json"

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

from chargpt.cache import cache_folder, locked, replacing
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


def stamps_of(files: Sequence[Path]) -> list[Stamp]:
    """
    Raises:
        OSError: there is no such file.
    """
    found = [(os.path.realpath(file), file.stat()) for file in files]
    return [Stamp(path, st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns) for path, st in found]


def remember(what: str, files: Sequence[Path], stamps: list[Stamp], answer: str, *, ours: bool = False) -> None:
    """Keep what was found out about files. It is left out where it cannot be kept, or is not certain.

    Args:
        what: the question that was answered.
        stamps: of the files, from before they were read.
        ours: nobody else writes to the files, so that they are known at once.
    """
    latest = max((max(stamp.changed, stamp.inode_changed) for stamp in stamps), default=0)
    if not all(stamp.inode for stamp in stamps) or (not ours and time.time() - latest / 1e9 < JUST_NOW):
        return
    with contextlib.suppress(OSError, UserError):  # a cache that is read-only, say: it is found out again
        file = _file(what, stamps)
        if stamps == stamps_of(files):
            with locked(file.parent), replacing(file) as out:
                out.write(json.dumps({"files": stamps, "answer": answer}).encode())


def recall(what: str, stamps: list[Stamp]) -> str | None:
    """What was found out about these files, if they are as they were; else None."""
    try:
        file = _file(what, stamps)
        if not file.is_file():  # to open a pipe would take for ever
            return None
        kept = json.loads(file.read_bytes())
        return str(kept["answer"]) if kept["files"] == [list(stamp) for stamp in stamps] else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _file(what: str, stamps: list[Stamp]) -> Path:
    names = os.fsencode("\0".join([what, *(stamp.path for stamp in stamps)]))
    return cache_folder() / "known" / f"{hashlib.sha256(names).hexdigest()}.json"

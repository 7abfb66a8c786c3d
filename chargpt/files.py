"""Find files, write them atomically, and lock a folder."""

import errno
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from filelock import FileLock

log = logging.getLogger(__name__)

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
BUSY = 5.0  # seconds for which another program (a virus scanner, Excel) may keep a file from being replaced


def find(folder: str | os.PathLike[str], pattern: str) -> list[Path]:
    """The files below a folder that match a glob, sorted, without hidden ones; each folder behind a link once."""
    found, seen = [], set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:  # a link to a folder above, or to one that was read
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [path for name in files if not name.startswith(".") and (path := Path(parent, name)).match(pattern)]
    return sorted(path for path in found if path.is_file())  # without links that lead nowhere


@contextmanager
def replacing(target: Path) -> Iterator[IO[bytes]]:
    """Write `.NAME.tmp`, and rename it to `target` once it is complete and on disk; after an error the old file is
    unchanged. One process at a time may write a target."""
    half = target.with_name(f".{target.name}.tmp")
    half.unlink(missing_ok=True)  # left by a process that was killed; a link is not written through
    try:
        with half.open("xb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        replace(half, target)
    except BaseException:
        half.unlink(missing_ok=True)
        raise


def write(target: Path, content: bytes) -> None:
    """Write a whole file atomically."""
    with replacing(target) as out:
        out.write(content)


def replace(source: Path, target: Path) -> None:
    """Rename a file over another. On Windows this fails while a program has that file open, so try for some seconds."""
    give_up = time.monotonic() + BUSY
    while True:
        try:
            return os.replace(source, target)
        except PermissionError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.1)


@contextmanager
def decoration(what: str) -> Iterator[None]:
    """Log an error in writing a file that the run does not need, and continue."""
    try:
        yield
    except OSError as error:
        log.warning(f"cannot write {what}: {error.strerror or error}")


@contextmanager
def locked(folder: Path, timeout: float = -1) -> Iterator[None]:
    """Make a folder and hold its lock, which the system releases when the process ends.

    `filelock.Timeout` is raised if another process holds it for `timeout` seconds; -1 waits without limit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", fallback_to_soft=False)
    try:
        lock.acquire(timeout=timeout)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        log.warning(f"The file system of {folder} has no locks: make sure that no other process writes there")
    try:
        yield
    finally:
        lock.release()

"""Files: found, written as a whole or not at all, and folders in which one process works at a time."""

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
    """The files below a folder whose path ends as a glob says, sorted: through links to folders, each once; hidden ones
    left out."""
    found, seen = [], set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [path for name in files if not name.startswith(".") and (path := Path(parent, name)).match(pattern)]
    return sorted(path for path in found if path.is_file())  # not links that lead nowhere


@contextmanager
def replacing(target: Path) -> Iterator[IO[bytes]]:
    """Write a file under the name `.NAME.tmp` and rename it into its place when it is complete and on disk.

    Nobody sees half of it, and after an error what was there is unchanged. One process at a time may write a target.
    """
    half = target.with_name(f".{target.name}.tmp")
    half.unlink(missing_ok=True)  # left by a process that was killed
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
    """Write a whole file as `replacing` does."""
    with replacing(target) as out:
        out.write(content)


def replace(source: Path, target: Path) -> None:
    """Rename a file over another, which on Windows fails while somebody has that one open: try for some seconds."""
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
    """Inside, a file is written that a run can do without: an error is logged, and training continues."""
    try:
        yield
    except OSError as error:
        log.warning(f"cannot write {what}: {error.strerror or error}")


@contextmanager
def locked(folder: Path, timeout: float = -1) -> Iterator[None]:
    """Make a folder and hold its lock, which the system releases when the process ends.

    Args:
        timeout: seconds to wait for another process; -1 waits without end.

    Raises:
        filelock.Timeout: another process holds it.
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

"""Find files, write them atomically, and lock a folder."""

import errno
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

log = logging.getLogger(__name__)
Result = TypeVar("Result")

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
BUSY_TIMEOUT = 5.0  # seconds for which another program (a virus scanner, Excel) may keep a file from being written


def find(folder: str | os.PathLike[str], pattern: str) -> list[Path]:
    """The files below a folder whose names in lower case match a glob, sorted, without hidden ones. A folder behind
    several links counts once."""
    found, seen = [], set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:  # a link to a folder above, or to one that was read
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        shown = [name for name in files if not name.startswith(".")]
        found += [Path(parent, name) for name in shown if Path(parent, name.lower()).match(pattern)]
    return sorted(path for path in found if path.is_file())  # without links that lead nowhere


@contextmanager
def replacing(target: Path, keep: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path. On success it is synced and renamed to `target`, and the old file to `keep`, if given; on
    an error nothing changes. One process at a time may write a target."""
    half = target.with_name(f".{target.name}.tmp")
    patiently(lambda: half.unlink(missing_ok=True))  # left by a process that was killed; a link is not written through
    try:
        yield half
        with patiently(lambda: half.open("rb+")) as file:
            os.fsync(file.fileno())
        if keep is not None and target.exists():
            patiently(lambda: os.replace(target, keep))
        patiently(lambda: os.replace(half, target))
    except BaseException:
        half.unlink(missing_ok=True)
        raise


def write(target: Path, content: bytes) -> None:
    """Write a whole file atomically."""
    with replacing(target) as half:
        half.write_bytes(content)


def write_figure(target: Path, figure: Any) -> None:
    """Write a figure as a PNG file. Figures are made without `pyplot`, which would keep them and look for a screen."""
    with replacing(target) as half, warnings.catch_warnings(action="ignore"):  # of characters that the font lacks
        figure.savefig(half, format="png", dpi=120)


def patiently(action: Callable[[], Result]) -> Result:
    """Retry for some seconds: on Windows, a file that another program has open cannot be written."""
    give_up = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            return action()
        except PermissionError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.1)


@contextmanager
def best_effort(what: str) -> Iterator[None]:
    """Log, rather than raise, an error in writing an optional file."""
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

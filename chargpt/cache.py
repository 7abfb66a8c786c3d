"""The user's cache: files that can be made again, each there as a whole or not at all.

Who writes there holds the folder's lock, and writes under another name that ends in `.tmp`. A process that is killed
loses its lock with its life, so that a `*.tmp` found under the lock is nobody's any more.
"""

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from chargpt.errors import UserError

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where this project caches (on Linux `~/.cache/chargpt`, or below `XDG_CACHE_HOME`)."""
    import pooch  # takes a while to import, and only training needs it

    return Path(pooch.os_cache("chargpt"))


@contextmanager
def locked(folder: Path, leftovers: str = "*.tmp") -> Iterator[None]:
    """Make a folder and hold its lock: others who want to write there wait.

    Args:
        leftovers: the files, as a glob, that killed processes may have left there; they are removed.

    Raises:
        UserError: the folder cannot be made or written.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / ".lock")
            try:
                stack.enter_context(lock.acquire(timeout=2))
            except Timeout:
                log.info(f"Waiting for another process to finish writing to {folder}")
                stack.enter_context(lock.acquire())
            _remove(folder, leftovers)
        except OSError as error:
            raise _cannot_write(folder, error) from error
        yield


def tidy(folder: Path) -> None:
    """Remove what killed processes left in a folder of the cache, if nobody is writing there and it can be done."""
    # Timeout is an OSError, too.
    with contextlib.suppress(OSError):
        if any(folder.glob("*.tmp")):
            with FileLock(folder / ".lock", blocking=False):
                _remove(folder, "*.tmp")


def _remove(folder: Path, leftovers: str) -> None:
    for file in folder.glob(leftovers):
        with contextlib.suppress(OSError):  # a folder, or another user's
            file.unlink()


@contextmanager
def replacing(target: Path) -> Iterator[IO[bytes]]:
    """Write a file beside its target and rename it into place, so that nobody sees half of it.

    The folder is there, and its lock is held.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        with tempfile.NamedTemporaryFile(
            dir=target.parent, prefix=f"{target.name}.", suffix=".tmp", delete=False
        ) as out:
            try:
                yield out
                out.close()  # Windows renames no open file, and removes none
                os.replace(out.name, target)
            except BaseException:
                out.close()
                os.unlink(out.name)
                raise
    except OSError as error:
        raise _cannot_write(target, error) from error


def _cannot_write(path: Path, error: OSError) -> UserError:
    elsewhere = "" if sys.platform in ("win32", "darwin") else "; XDG_CACHE_HOME names another folder for the cache"
    return UserError(f"cannot write {path}: {error.strerror or error}{elsewhere}")

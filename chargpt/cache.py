"""The user's cache: files that can be made again, each there as a whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from chargpt.errors import UserError


def cache_folder() -> Path:
    """Where this project caches (on Linux `~/.cache/chargpt`, or below `XDG_CACHE_HOME`)."""
    import pooch  # takes a while to import, and only training needs it

    return Path(pooch.os_cache("chargpt"))


@contextmanager
def replacing(target: Path) -> Iterator[IO[bytes]]:
    """Write a file beside its target and rename it into place, so that nobody sees half of it.

    Raises:
        UserError: the folder cannot be made or written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=target.name, suffix=".tmp", delete=False) as out:
            try:
                yield out
                out.flush()
            except BaseException:
                out.close()  # Windows removes no open file, and renames none
                os.unlink(out.name)
                raise
        os.replace(out.name, target)
    except OSError as error:
        raise UserError(
            f"cannot write {target}: {error.strerror}; XDG_CACHE_HOME names another folder for the cache"
        ) from error

"""Files to read: found all, or none at all. What cannot be read is an error, never left out."""

import errno
import fnmatch
import glob
import io
import os
import stat
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from chargpt.errors import UserError

NOT_ON_DISK = ("/dev/stdin", "/dev/fd/", "/proc/", "/sys/")  # another text each time, or never an end
KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def identity(file: Path) -> Hashable:
    """What all names of a file have in common.

    Raises:
        UserError: there is no file that can be read as often as one likes.
    """
    try:
        found = file.stat()
    except OSError as error:
        raise cannot_read(file, error) from error
    real = os.path.realpath(file) if not (found.st_size and found.st_ino) else ""  # takes long for many files
    kind = KINDS.get(stat.S_IFMT(found.st_mode))
    if kind or os.path.abspath(file).startswith(NOT_ON_DISK) or real.startswith(NOT_ON_DISK):
        raise UserError(
            f"{file} is {kind or 'made up as it is read'}, not a file on disk, and a text is read more than"
            " once: save it first (cat ... > my.txt), then data.path=my.txt"
        )
    return (found.st_dev, found.st_ino) if found.st_ino else real  # some file systems have no numbers


def cannot_read(file: Path, error: OSError) -> UserError:
    """The error that a file or folder cannot be read."""
    broken = isinstance(error, FileNotFoundError) and os.path.islink(file)
    reason = "the file that it links to is missing" if broken else error.strerror or error
    return UserError(f"cannot read {file}: {reason}")


LARGEST = 1 << 26  # bytes of a file that is read by lines


def lines_of(file: Path, most: int, longest: int) -> Iterator[bytes]:
    """The first lines of a file in somebody's folder, those left out that are too long; none of one that is larger than
    64 MiB, or that is a link, a pipe or the like: it would be another's, or without end."""
    try:
        number = os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with open(number, "rb") as opened:
            found = os.fstat(number)
            if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST:
                return
            content = opened.read(found.st_size)  # what says that it is empty, as in /proc, is
    except OSError:
        return
    yield from (line for line in islice(io.BytesIO(content), most) if len(line) <= longest)


def write_whole(file: Path, content: bytes) -> None:
    """Write a file under another name, and rename it into its place: nobody sees half of it, and a link that stands
    there is replaced, not followed.

    Raises:
        OSError: it cannot be written; what was there is as it was.
    """
    write_all({file: content})


def write_all(contents: Mapping[Path, bytes]) -> None:
    """Write files that belong together as `write_whole` does one: none is renamed before all are written.

    Raises:
        OSError: one cannot be written; what was there is as it was, unless the renaming failed.
    """
    halves = {file.with_name(f".{file.name}.{os.getpid()}.tmp"): file for file in contents}
    try:
        for half, file in halves.items():
            half.unlink(missing_ok=True)
            with half.open("xb") as out:
                out.write(contents[file])
        for half, file in halves.items():
            os.replace(half, file)
    except BaseException:
        for half in halves:
            half.unlink(missing_ok=True)
        raise


def status(path: Path) -> os.stat_result | None:
    """What is at a path; None where nothing is.

    Raises:
        UserError: a folder on the way to it cannot be read.
    """
    try:
        return path.stat()
    except OSError as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError) and not path.is_symlink():
            return None
        raise cannot_read(path, error) from error


def matches(root: Path, pattern: Sequence[str], *, hidden: bool) -> list[Path]:
    """The files below a folder that a glob matches, in no order.

    Other than `glob.glob`, which leaves out what it cannot read, it fails, and it goes through each folder once,
    however many links lead there.

    Args:
        pattern: the glob, cut at its slashes.
        hidden: whether names that begin with a dot count.

    Raises:
        UserError: a folder cannot be read, or a match leads nowhere.
    """
    if pattern[-1] == "**":
        pattern = [*pattern, "*"]
    files: list[Path] = []
    seen: set[tuple[int, int, int]] = set()
    todo = [(root, 0)]  # no recursion: folders may lie deeper than Python's stack
    links: list[tuple[Path, int]] = []
    while todo or links:
        path, place = todo.pop() if todo else links.pop()  # a folder's own name comes before those of links to it
        if place < len(pattern) and pattern[place] != "**" and not glob.has_magic(pattern[place]):
            todo.append((path / pattern[place], place + 1))
            continue
        found = status(path)
        if found is None:
            continue
        if place == len(pattern):
            if not stat.S_ISDIR(found.st_mode):
                files.append(path)
            continue
        key = (found.st_dev, found.st_ino, place)
        if not stat.S_ISDIR(found.st_mode) or (found.st_ino and key in seen):
            continue
        seen.add(key)
        part, is_last = pattern[place], place + 1 == len(pattern)
        if part == "**":
            todo.append((path, place + 1))
        for entry in _entries(path):
            if entry.name.startswith(".") and not hidden and not part.startswith("."):
                continue
            if part == "**":
                if _is_folder(entry):
                    (links if entry.is_symlink() else todo).append((path / entry.name, place))
            elif fnmatch.fnmatch(entry.name, part) and (is_last or _is_folder(entry)):
                todo.append((path / entry.name, place + 1))
    return files


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, in reverse order of name, as it is put on a stack."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name, reverse=True)
    except OSError as error:
        raise cannot_read(folder, error) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one; a link that leads nowhere is none."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise cannot_read(Path(entry.path), error) from error

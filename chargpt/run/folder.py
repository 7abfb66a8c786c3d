"""The folder of a run: who works in it, and what stands in it."""

import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig

from chargpt import curve, samples
from chargpt.errors import UserError, escape

CONFIG = ".hydra/config.yaml"
CHOICES = ".hydra/hydra.yaml"  # Hydra's own settings, the chosen options among them
CHECKPOINTS = ("checkpoints/last.ckpt", "checkpoints/previous.ckpt")  # states of training, the newest first

WRITTEN = (curve.FILE, curve.PICTURE, samples.FILE)  # anew by a run that begins


def short(folder: Path) -> Path:
    """The folder as one would type it: relative where it lies below the directory in which the command was given."""
    here = HydraConfig.get().runtime.cwd if HydraConfig.initialized() else Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def has_state(run: Path) -> bool:
    """Whether there is something to go on from."""
    return any((run / name).exists() for name in CHECKPOINTS)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Work in a run's folder, where no other process does; what a killed one left half-written there is removed.

    The lock is the system's: it ends with the process, however that ends.

    Raises:
        UserError: another process works there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(
            f"another process is at work in {short(folder)}: stop it first, let it end, or begin another run elsewhere"
            " (hydra.run.dir=...)"
        ) from None
    try:
        for half in (*folder.glob("checkpoints/.*.tmp"), *folder.glob(".hydra/*.tmp"), *folder.glob(".*.tmp")):
            half.unlink()
        yield
    finally:
        lock.release()


def check_contents(folder: Path) -> None:
    """Refuse a folder in which something leads elsewhere: what is read or written there would be another's.

    Raises:
        UserError: there is a link to somewhere outside, a pipe or the like, or a checkpoint that Lightning would load
            by itself.
    """
    check_name(folder)
    root = os.path.realpath(folder)
    for parent, folders, files in os.walk(root, onerror=_raise):
        for path in (Path(parent, name) for name in (*folders, *files)):
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode):
                inside = Path(os.path.realpath(path)).is_relative_to(root)
                wrong = "" if inside else "a link to somewhere outside of it"
            elif stat.S_ISREG(status.st_mode):
                wrong = "a hard link (a plain copy, cp -r, has none)" if status.st_nlink > 1 else ""
            else:
                wrong = "" if stat.S_ISDIR(status.st_mode) else "neither a file nor a folder"
            if path.name.startswith("hpc_ckpt_"):
                wrong = "a checkpoint of a name that Lightning loads by itself"
            if wrong:
                raise UserError(f"the run's folder {short(folder)} has {wrong}: {path.relative_to(root)}")


def check_name(folder: Path) -> None:
    """Refuse a folder of which a library would take the name for another place, or cannot write it.

    Raises:
        UserError: Hydra would take a part of it for a reference, or Lightning's way to files for an address.
    """
    name = str(folder.absolute())
    for part in ("${", "::", "://"):
        if part in name:
            raise UserError(f"a run's folder cannot have {part} in its name, which stands for another place: {folder}")
    if escape(name) != name:
        raise UserError(f"a run's folder cannot have control characters in its name, nor what is not UTF-8: {folder}")


def _raise(error: OSError) -> None:
    raise UserError(f"cannot read the folder {error.filename}: {error.strerror}") from error


def claim(folder: Path, config: str) -> None:
    """Make the run's folder of checkpoints, unless another run has it already.

    A run that ended before its first save begins again in its folder.

    Args:
        config: the text of the run's configuration.

    Raises:
        UserError: there is a run in the folder.
    """
    check_name(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if found := next(folder.glob("hpc_ckpt_*"), None):
        raise UserError(f"{short(folder)} has a checkpoint of a name that Lightning loads by itself: {found.name}")
    saved = [*folder.glob("checkpoints/*")]
    same = (folder / CONFIG).is_file() and (folder / CONFIG).read_text(encoding="utf-8") == config
    if any((folder / name).exists() for name in CHECKPOINTS) or (saved and not same):
        raise UserError(f"{short(folder)} holds a run already; hydra.run.dir=... names another folder")
    if not same and (other := next((name for name in WRITTEN if os.path.lexists(folder / name)), None)):
        raise UserError(f"{short(folder)} has a {other}, which would be lost; hydra.run.dir=... names another folder")
    (folder / "checkpoints").mkdir(exist_ok=True)


def settle_events(folder: Path) -> None:
    """Make earlier events sort before those to come, also when the clock has been set back since: TensorBoard reads a
    run's event files in the order of the second in their names."""
    pattern = re.compile(r"(events\.out\.tfevents\.)([1-9]\d{0,10})(\..*)", re.ASCII | re.DOTALL)
    names = [name for file in folder.iterdir() if (name := pattern.fullmatch(file.name)) and file.is_file()]
    ahead = max((int(name[2]) for name in names), default=0) - int(time.time()) + 1
    if ahead > 0:
        for name in sorted(names, key=lambda name: int(name[2])):  # the earliest first: its new name is nobody's
            settled = folder / f"{name[1]}{int(name[2]) - ahead}{name[3]}"
            if not settled.exists():
                (folder / name[0]).rename(settled)

"""The folder of a run: one process at a time works in it, and it holds one run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import Timeout
from hydra.core.hydra_config import HydraConfig

from chargpt.errors import UserError
from chargpt.files import locked
from chargpt.history import LOSSES, PICTURE, SAMPLES

CHECKPOINTS = ("checkpoints/last.ckpt", "checkpoints/previous.ckpt")  # states of training, the newest first
WRITTEN = (LOSSES, PICTURE, SAMPLES, "checkpoints/best.ckpt")  # overwritten by a new run


def short(folder: Path) -> Path:
    """The folder as a person would type it: relative to where the command was typed, if it lies below."""
    here = HydraConfig.get().runtime.cwd if HydraConfig.initialized() else Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def has_state(run: Path) -> bool:
    """Whether there is a checkpoint to resume from."""
    return any((run / name).exists() for name in CHECKPOINTS)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder."""
    try:
        with locked(folder, timeout=0):
            yield
    except Timeout:
        advice = f"stop it, wait, or name another folder. If no process is, remove {short(folder / '.lock')}"
        raise UserError(f"another process is at work in {short(folder)}: {advice}") from None


def check_contents(folder: Path) -> None:
    """Refuse a folder with links that lead out of it (files outside could be overwritten), or with a checkpoint that
    Lightning would load because of its name."""
    root = os.path.realpath(folder)
    for path in Path(root).rglob("*"):
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
            raise UserError(f"the run's folder has a link that leads out of it: {short(path)}")
        if path.name.startswith("hpc_ckpt_"):
            raise UserError(f"Lightning would load {short(path)} because of its name: move it out of the run's folder")


def claim(folder: Path, *, began_here: bool) -> None:
    """Refuse a folder that holds another run, or files that a run would overwrite. A run that `began_here` and ended
    before its first save may begin again."""
    check_contents(folder)
    if has_state(folder):
        raise UserError(f"{short(folder)} holds a run already: resume={short(folder)}, or name another hydra.run.dir=")
    if not began_here and (file := next((name for name in WRITTEN if os.path.lexists(folder / name)), None)):
        raise UserError(f"{short(folder)} has a {file}, which would be lost; hydra.run.dir=... names another folder")
    (folder / "checkpoints").mkdir(exist_ok=True)

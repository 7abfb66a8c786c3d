"""How the checkpoints of a run are written: under another name and renamed, so that a crash leaves the one before."""

import os
from pathlib import Path

from lightning.pytorch import Trainer


def save(trainer: Trainer, path: Path, *, weights_only: bool = False, keep: Path | None = None) -> None:
    """Write a checkpoint beside its place and rename it into it.

    Args:
        keep: the name under which the checkpoint that is replaced stays.

    Raises:
        OSError: the disk is full, say; the checkpoints that were there are as they were.
    """
    half = path.with_name(f".{path.name}.tmp")
    try:
        trainer.save_checkpoint(half, weights_only=weights_only)  # all processes take part
        if trainer.is_global_zero:
            with half.open("rb+") as file:
                os.fsync(file.fileno())  # the bytes are on disk before the name is
            if keep is not None and path.exists():
                os.replace(path, keep)
            os.replace(half, path)
    except BaseException:
        half.unlink(missing_ok=True)
        raise

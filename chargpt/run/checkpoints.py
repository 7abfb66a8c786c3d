"""How the checkpoints of a run are written, under another name and renamed, so that a crash leaves the one before; and
how Lightning gets one."""

import os
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io import TorchCheckpointIO
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
        if trainer.is_global_zero:  # whose file it is
            half.unlink(missing_ok=True)
        raise


class StateInMemory(TorchCheckpointIO):
    """Writes checkpoints as Lightning does, and gives it a state that was read and checked, so that the file need not
    be read a second time.

    Args:
        state: what a checkpoint holds; it is given once, and not kept.
    """

    def __init__(self, state: dict[str, Any]):
        super().__init__()
        self.state = state

    def load_checkpoint(self, *_: Any, **__: Any) -> dict[str, Any]:
        state = dict(self.state)
        self.state.clear()
        return state

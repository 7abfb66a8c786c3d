"""The folder of a run: that no other run is in it, and what stands in it."""

import os
import re
import time
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from chargpt.errors import UserError

CONFIG = ".hydra/config.yaml"
CHOICES = ".hydra/hydra.yaml"  # Hydra's own settings, the chosen options among them
CHECKPOINTS = ("checkpoints/last.ckpt", "checkpoints/previous.ckpt")  # states of training, the newest first


def short(folder: Path) -> Path:
    """The folder as one would type it: relative where it lies below the working directory."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def claim(folder: Path) -> None:
    """Make the run's folder of checkpoints; only one run can, so no run writes over another's.

    Raises:
        UserError: there is a run in the folder.
    """
    try:
        (folder / "checkpoints").mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"{short(folder)} holds a run already; hydra.run.dir=... names another folder") from None


def store_config(cfg: DictConfig, folder: Path) -> None:
    """Keep the configuration as it is now for the next time."""
    half = folder / f"{CONFIG}.tmp"
    half.parent.mkdir(exist_ok=True)
    OmegaConf.save(cfg, half)
    os.replace(half, folder / CONFIG)


def settle_events(folder: Path) -> None:
    """Make earlier events sort before those to come, also when the clock has been set back since: TensorBoard reads a
    run's event files in the order of the second in their names."""
    files = {
        file: re.fullmatch(r"(events\.out\.tfevents\.)(\d+)(\..*)", file.name) for file in folder.glob("*tfevents*")
    }
    seconds = [int(match[2]) for match in files.values() if match]
    ahead = max(seconds, default=0) - int(time.time()) + 1
    if ahead > 0:
        for file, match in files.items():
            if match:
                file.rename(folder / f"{match[1]}{int(match[2]) - ahead}{match[3]}")

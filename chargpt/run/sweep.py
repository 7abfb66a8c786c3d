"""Several runs by one command: how their folders are called, and whether this is one of them."""

import hashlib
import re

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode


def in_sweep() -> bool:
    """Whether this process runs a job of a sweep (`--multirun`)."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def folder_name(overrides: str) -> str:
    """One folder's name for a job's overrides: no separators in it, and no longer than file systems allow."""
    name = re.sub(r"[^\w.,=+-]", "_", overrides).strip(".") or "defaults"
    if len(name.encode()) <= 200:
        return name
    return f"{name.encode()[:190].decode(errors='ignore')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"

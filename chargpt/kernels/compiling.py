"""Whether a model is compiled for training, and what that needs."""

import importlib.util
import logging
import os
import shutil
import sys

import torch
from torch import nn

from chargpt.errors import UserError

log = logging.getLogger(__name__)

PAYS_AFTER = 1000  # steps: compiling takes about as long as some hundred of the default model's (a guess, not measured)


def compile_model(net: nn.Module, setting: str | bool, device: torch.device, steps: int) -> bool:
    """Have `net` compiled by `torch.compile`, in place and at its next call, where the setting asks for it.

    Args:
        setting: true, false, or auto: on CUDA, in a run long enough, where there is a compiler. (Compiled for a CPU the
            model is slower than it is without.)
        steps: optimizer steps of the whole run.

    Returns:
        Whether it will be compiled.

    Raises:
        UserError: the setting is another one, or it is true and something is missing.
    """
    if not isinstance(setting, bool) and setting != "auto":
        raise UserError(f"compile must be auto, true or false; got {setting}")
    if setting is False or (setting == "auto" and (device.type != "cuda" or steps < PAYS_AFTER)):
        return False
    missing = _missing(device)
    if missing is not None:
        if setting is True:
            raise UserError(f"compile=true cannot be done: {missing}; compile=false trains without")
        log.warning(f"Not compiled, which would train faster: {missing}")
        return False
    net.compile(dynamic=False)  # in place: the names in a checkpoint stay as they are
    return True


def _missing(device: torch.device) -> str | None:
    """What `torch.compile` would not find on this machine; None if all is there."""
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) < (7, 0):
            return f"{torch.cuda.get_device_name(device)} is older than Triton supports"
        if importlib.util.find_spec("triton") is None:
            return "there is no Triton (python -m pip install triton)"
        if not any(map(shutil.which, filter(None, (os.environ.get("CC"), "gcc", "clang")))):
            return "there is no C compiler (install gcc, or name another as CC)"
    elif device.type == "cpu":
        compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
        if not shutil.which(compiler):
            return f"there is no C++ compiler {compiler} (install it, or name another as CXX)"
    return None

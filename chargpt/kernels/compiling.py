"""Whether a model is compiled for training."""

import logging

import torch
from torch import nn

from chargpt.errors import UserError, first_line

log = logging.getLogger(__name__)

LONG_RUN = 1000  # steps; compiling takes about a minute


def compile_model(net: nn.Module, setting: str | bool, device: torch.device, steps: int) -> bool:
    """Have `torch.compile` compile `net` in place (the names in a checkpoint stay) at its first call, or not.

    Args:
        setting: true, false, or auto: on CUDA, in long runs. (On a CPU the compiled model is slower.)
        steps: optimizer steps of the whole run.
    """
    if not isinstance(setting, bool) and setting != "auto":
        raise UserError(f"compile must be auto, true or false; got {setting}")
    if setting is False or (setting == "auto" and (device.type != "cuda" or steps < LONG_RUN)):
        return False
    try:  # something small first: a compiler, Triton or a GPU that is new enough may be missing
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:
        if setting is True:
            raise UserError(f"compile=true fails: {first_line(error)}; compile=false trains without") from error
        log.warning(f"Not compiled, which would train faster: {first_line(error)}")
        return False
    net.compile(dynamic=False)
    return True

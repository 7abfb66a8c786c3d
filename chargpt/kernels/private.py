"""Operators of PyTorch that are not part of its public interface: the only place that names them.

Some builds lack them (those for macOS have no oneDNN), and a later release may. Each is looked up here, and is None
where it is not found; whoever uses one has a plain way without it.
"""

from collections.abc import Callable
from typing import Any

import torch


def find(path: str) -> Callable[..., Any] | None:
    """What stands at a dotted path below `torch`, or None."""
    found: Any = torch
    for name in path.split("."):
        found = getattr(found, name, None)  # torch.ops answers for names that it does not have with AttributeError
        if found is None:
            return None
    return found


# (x, weight, bias, "none" or "relu", [], "") to x weight^T + bias by oneDNN: what torch.compile calls on a CPU.
onednn_linear = find("ops.mkldnn._linear_pointwise")
# () to whether oneDNN multiplies bf16 on this CPU.
onednn_has_bf16 = find("ops.mkldnn._is_mkldnn_bf16_supported")
# (grad, softmax, dim, dtype) to the gradient of what the softmax was taken of.
softmax_gradient = find("_softmax_backward_data")


def unscale_before_step(optimizer: torch.optim.Optimizer) -> None:
    """Have a fused optimizer leave a gradient scaler's work to the scaler (16-mixed only), as any other optimizer does.

    Lightning would refuse to clip gradients beside one that can take over this work.
    """
    if hasattr(optimizer, "_step_supports_amp_scaling"):
        optimizer._step_supports_amp_scaling = False

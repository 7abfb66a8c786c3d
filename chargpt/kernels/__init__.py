"""Why it is fast: nothing in here changes what is computed, but for dropout in steps of 1/256, and each part has
PyTorch's plain way beside it.

This file alone names PyTorch's private operators. Each is None in builds that lack it (those for macOS have no oneDNN).
"""

import torch

# (x, weight, bias, "none" or "relu", [], "") to x weight^T + bias by oneDNN: what torch.compile calls on a CPU.
onednn_linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
# (grad, softmax, dim, dtype) to the gradient of the softmax's input.
softmax_gradient = getattr(torch, "_softmax_backward_data", None)


def unscale_before_step(optimizer: torch.optim.Optimizer) -> None:
    """Leave unscaling (16-mixed only) to the gradient scaler. A fused optimizer offers to do it, and Lightning would
    then refuse to clip gradients."""
    if hasattr(optimizer, "_step_supports_amp_scaling"):
        optimizer._step_supports_amp_scaling = False

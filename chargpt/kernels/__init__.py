"""Why training on a CPU is fast: matrix products by oneDNN where that is faster, and cheap random numbers for dropout
(`layers`); bf16 where the CPU is fast at it (`choice`); attention in blocks that fit its cache (`cpu_attention`).

Results equal PyTorch's, but for dropout probabilities, which are rounded to 1/256. Every kernel has a plain PyTorch
fallback. Only this file names PyTorch's private operators; one that a build lacks (on macOS, oneDNN's) is None.
`CharLM.logits` cuts batches so that each layer finds its input in the CPU's cache.
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

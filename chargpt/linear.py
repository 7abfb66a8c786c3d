"""A linear layer that uses what the CPU has when nothing has to be learned."""

import torch
from torch import Tensor, nn


class Linear(nn.Linear):
    """`nn.Linear`, except that a CPU in fp32 without gradients takes oneDNN's kernels.

    PyTorch itself would take MKL's, which are slow on AMD CPUs: oneDNN reads a full window in half the time there.
    """

    def forward(self, x: Tensor) -> Tensor:
        if (
            x.device.type == "cpu"
            and x.dtype == torch.float32
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and torch.backends.mkldnn.is_available()
        ):
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return super().forward(x)

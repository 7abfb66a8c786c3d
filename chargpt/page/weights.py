"""Weights in fewer bytes than in training."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chargpt.errors import UserError

KINDS = ("fp16", "int8")
ALIGNED = 4  # bytes, for JavaScript's typed arrays


class Packed(NamedTuple):
    """The bytes of all weights; each tensor's name, shape, kind and offsets in them; and the rounded weights, fp32."""

    content: bytes
    tensors: list[dict[str, Any]]
    rounded: dict[str, Tensor]


def pack(weights: Mapping[str, Tensor], kind: str) -> Packed:
    """Round the weights of a model.

    Args:
        kind: `fp16`, or `int8`: whole numbers of -127 to 127 with a float32 scale for each row of a matrix; vectors,
            which are few, stay in fp16.
    """
    content, tensors, rounded = bytearray(), [], {}

    def store(numbers: Tensor) -> int:
        content.extend(bytes(-len(content) % ALIGNED))
        offset = len(content)
        content.extend(numbers.contiguous().numpy().tobytes())
        return offset

    for name, weight in weights.items():
        weight = weight.float().cpu()
        tensor = {"name": name, "shape": list(weight.shape)}
        if kind == "int8" and weight.dim() > 1:
            scales = (weight.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)  # (rows,)
            numbers = (weight / scales[:, None]).round().clamp(-127, 127).to(torch.int8)
            rounded[name] = numbers.float() * scales[:, None]
            tensors.append(tensor | {"kind": "int8", "scales": store(scales), "offset": store(numbers)})
        else:
            rounded[name] = weight.half().float()
            tensors.append(tensor | {"kind": "fp16", "offset": store(weight.half())})
        if not rounded[name].isfinite().all():
            raise UserError(f"the weights {name} are too large for {kind}")
    return Packed(bytes(content), tensors, rounded)

"""Weights in fewer bytes than they are trained with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from chargpt.errors import UserError

ALIGNED = 4  # bytes, for JavaScript's views of numbers


@dataclass(frozen=True)
class Packed:
    """Numbers one after the other, and where each tensor's are.

    Attributes:
        content: the numbers' bytes.
        tensors: the table of contents: each tensor's name, shape, kind and offsets in bytes.
        rounded: the tensors as whoever unpacks them finds them, in float32.
    """

    content: bytes
    tensors: list[dict[str, Any]]
    rounded: dict[str, Tensor]


def fp16(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Two bytes for each number."""
    half = weight.half()
    return {"offset": half}, half.float()


def int8(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Whole numbers of -127 to 127, times a number for each row; vectors, which are few, stay in fp16."""
    if weight.dim() < 2:
        return fp16(weight)
    scales = (weight.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)  # (rows,)
    whole = (weight / scales[:, None]).round().clamp(-127, 127).to(torch.int8)
    return {"scales": scales, "offset": whole}, whole.float() * scales[:, None]


KINDS: dict[str, Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]] = {"fp16": fp16, "int8": int8}


def pack(weights: Mapping[str, Tensor], kind: str) -> Packed:
    """The weights of a model as `kind` has them.

    Raises:
        UserError: they are too large for it.
    """
    content, tensors, rounded = bytearray(), [], {}
    for name, weight in weights.items():
        parts, rounded[name] = KINDS[kind](weight.float().cpu())
        if not rounded[name].isfinite().all():
            raise UserError(f"the weights {name} are too large for {kind}")
        places = {}
        for part, numbers in parts.items():
            content.extend(bytes(-len(content) % ALIGNED))
            places[part] = len(content)
            content.extend(numbers.contiguous().numpy().tobytes())
        stored = "int8" if "scales" in parts else "fp16"
        tensors.append({"name": name, "shape": list(weight.shape), "kind": stored, **places})
    return Packed(bytes(content), tensors, rounded)

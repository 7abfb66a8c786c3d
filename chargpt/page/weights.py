"""Weights in fewer bytes than they are trained with."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from chargpt.errors import UserError

ALIGNED = 4  # bytes, for JavaScript's views of numbers


class Packed:
    """Numbers one after the other, and where each tensor's are.

    Attributes:
        tensors: the table of contents: each tensor's name, shape, kind and offsets in bytes.
        rounded: the tensors as whoever unpacks them finds them, in float32.
    """

    def __init__(self) -> None:
        self.tensors: list[dict[str, Any]] = []
        self.rounded: dict[str, Tensor] = {}
        self._bytes = bytearray()

    @property
    def bytes(self) -> bytes:
        return bytes(self._bytes)

    def put(self, numbers: Tensor) -> int:
        """Add numbers; returns where they begin."""
        self._bytes.extend(bytes(-len(self._bytes) % ALIGNED))
        offset = len(self._bytes)
        self._bytes.extend(numbers.contiguous().numpy().tobytes())
        return offset


def _as_fp16(packed: Packed, name: str, weight: Tensor) -> None:
    half = weight.half()
    if not half.isfinite().all():
        raise UserError(f"the weights {name} are too large for fp16: --weights int8 may hold them")
    packed.tensors.append({"name": name, "shape": list(weight.shape), "kind": "fp16", "offset": packed.put(half)})
    packed.rounded[name] = half.float()


def _as_int8(packed: Packed, name: str, weight: Tensor) -> None:
    """Whole numbers of -127 to 127, times a number for each row; vectors, which are few, stay in fp16."""
    if weight.dim() < 2:
        return _as_fp16(packed, name, weight)
    scales = (weight.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)  # (rows,)
    whole = (weight / scales[:, None]).round().clamp(-127, 127).to(torch.int8)
    places = {"scales": packed.put(scales), "offset": packed.put(whole)}
    packed.tensors.append({"name": name, "shape": list(weight.shape), "kind": "int8", **places})
    packed.rounded[name] = whole.float() * scales[:, None]
    return None


KINDS: dict[str, Callable[[Packed, str, Tensor], None]] = {"fp16": _as_fp16, "int8": _as_int8}


def pack(weights: dict[str, Tensor], kind: str) -> Packed:
    """The weights of a model as `kind` has them.

    Raises:
        UserError: they are too large for it.
    """
    packed = Packed()
    for name, weight in weights.items():
        KINDS[kind](packed, name, weight.float().cpu())
    return packed

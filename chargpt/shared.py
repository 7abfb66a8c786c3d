"""The folder of a model that is shared: its weights, what is known of it, and a description for people.

The weights are in the format of the safetensors library: eight bytes that say how long the header is; the header, JSON,
which says of what kind and shape each tensor is and where it lies; and their bytes. All of it may come from a stranger,
so it is read here, where it can be held against the settings before a tensor takes memory.
"""

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from chargpt.errors import UserError
from chargpt.settings import LARGEST, MOST_STEPS, make

if TYPE_CHECKING:
    import torch

WEIGHTS, CONFIG, CARD = FILES = ("model.safetensors", "config.json", "README.md")
FORMAT = 1  # of the config
TEXT_KEYS = ("name", "sha256", "val_name", "val_sha256", "test_name", "test_sha256")  # what is said of texts
LONGEST = 4 << 20  # bytes of a config, or of a header: ten times that of a thousand layers, or of 50,000 characters


@dataclass
class SharedConfig:
    """What `config.json` says.

    Attributes:
        format_version: of the file.
        model: its settings by name; `name` is the kind of model.
        characters: the vocabulary, in order of id; None of a model of bytes.
        text: what it was trained on and, if these are texts of their own, validated and tested on, by some of
            `TEXT_KEYS`; empty where that is not known.
        scoring: how it was validated, as a `chargpt.checkpoint.Scoring` has it.
        best_loss: the lowest validation loss of its run so far, in nats per id; None where it is not known.
        step: optimizer steps taken; None where they are not known.

    Raises:
        UserError: a value is out of range.
    """

    format_version: int
    model: dict[str, Any]
    characters: str | None
    text: dict[str, str] = field(default_factory=dict)
    scoring: dict[str, Any] = field(default_factory=dict)
    best_loss: float | None = None
    step: int | None = None

    def __post_init__(self) -> None:
        if self.text and not is_of_texts(self.text):
            raise UserError("config.text must have a name and a sha256, or be empty")
        if self.best_loss is not None and not 0 <= self.best_loss < math.inf:
            raise UserError(f"config.best_loss must be at least 0, and finite; got {self.best_loss}")
        if self.step is not None and not 0 <= self.step < MOST_STEPS:
            raise UserError(f"config.step must be at least 0 and below 2**53; got {self.step}")


def is_of_texts(text: dict[str, str]) -> bool:
    """Whether it names a text, and perhaps others, each by what it is called and by its hash."""
    names, hashes = TEXT_KEYS[::2], TEXT_KEYS[1::2]
    pairs = all((name in text) == (sha256 in text) for name, sha256 in zip(names, hashes, strict=True))
    return pairs and names[0] in text and text.keys() <= set(TEXT_KEYS)


def read_config(path: Path) -> SharedConfig:
    """What is known of a model.

    Raises:
        OSError: the file cannot be read.
        UserError: it is missing, no such file, of another version, or a value is of another type or out of range.
    """
    if path.exists() and not path.is_file():  # to open a pipe would take for ever
        raise UserError(f"{path.name} is no file")
    try:
        with open(path, "rb") as file:
            found = _json(file, os.fstat(file.fileno()).st_size)
    except FileNotFoundError:
        raise UserError(f"{path.name} is missing") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path.name} is damaged, or not one that chargpt.share wrote") from error
    if not isinstance(found, dict) or "format_version" not in found:
        raise UserError(f"{path.name} is not one that chargpt.share wrote")
    if found["format_version"] != FORMAT:
        raise UserError(f"{path.name} is of another version than {FORMAT}, which this one can read")
    missing = {"model", "characters"} - found.keys()
    if missing:
        raise UserError(f"{path.name} lacks {' and '.join(sorted(missing))}")
    return make("config", SharedConfig, found)


def read_header(file: BinaryIO) -> "dict[str, torch.Tensor]":
    """The tensors that follow in a file, in their order there: without numbers, on the meta device.

    They are those of a model: numbers of kinds that one has, in one or two dimensions.

    Raises:
        OSError: the file cannot be read.
        Exception: it is damaged or no such file; of which kind depends on the damage.
    """
    import torch

    kinds = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    length = int.from_bytes(file.read(8), "little")
    header = _json(file, length)
    end = 0
    tensors = {}
    metadata = header.pop("__metadata__", {})  # other programs leave some
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("not metadata")
    for name, about in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if about.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError("not a tensor")
        kind, shape, (begin, after) = kinds[about["dtype"]], about["shape"], about["data_offsets"]
        if not 1 <= len(shape) <= 2 or not all(type(size) is int and 1 <= size <= LARGEST for size in shape):
            raise ValueError("a shape that no weights have")
        if type(begin) is not int or begin != end or after != begin + math.prod(shape) * kind.itemsize:
            raise ValueError("tensors that overlap, or bytes that are no tensor's")
        tensors[name], end = torch.empty(shape, dtype=kind, device="meta"), after
    if os.fstat(file.fileno()).st_size != 8 + length + end:
        raise ValueError("of another size than its header says")
    return tensors


def read_numbers(file: BinaryIO, header: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """The tensors that a header announces; the file stands behind it.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has become shorter.
    """
    import torch

    tensors = {}
    for name, like in header.items():
        numbers = torch.empty(like.nbytes, dtype=torch.uint8)  # where kernels are quickest
        if file.readinto(numbers.numpy()) != like.nbytes:  # type: ignore[attr-defined]  # each file has it
            raise ValueError("cut off")
        tensors[name] = numbers.view(like.dtype).view(like.shape)
    return tensors


def _json(file: BinaryIO, length: int) -> Any:
    """The JSON in the next bytes of a file.

    Raises:
        ValueError, RecursionError: it is too long, none, too deep, names a key twice, or has numbers that are none.
    """
    if length > LONGEST:
        raise ValueError("too long")
    content = file.read(length)
    if len(content) != length:
        raise ValueError("cut off")
    return json.loads(content.decode(), object_pairs_hook=_once, parse_constant=_refuse)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key that is there twice")
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"not a number: {constant}")

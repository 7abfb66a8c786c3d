"""What a stranger might put into a file. `test_attacks.py` shows that each works if nothing of ours is in its way."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

Members = list[tuple[str, bytes]]


class Calls:
    """Unpickles as the result of a call."""

    def __init__(self, function: Callable, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


class Builds:
    """Runs code when its state is set."""

    def __setstate__(self, state: dict) -> None:
        os.mkdir("was_here")

    def __getstate__(self) -> dict:
        return {"a": 1}


class Fills(dict):
    """Runs code when it is filled."""

    def __setitem__(self, key: object, value: object) -> None:
        os.mkdir("was_here")

    def __reduce__(self) -> tuple:
        return Fills, (), None, None, iter([(1, 2)])


# Each makes a folder `was_here` when it is unpickled without care.
OBJECTS_THAT_RUN: dict[str, Any] = {
    "reduce": Calls(os.mkdir, "was_here"),
    "eval": Calls(eval, "__import__('os').mkdir('was_here')"),
    "exec": Calls(exec, "import os; os.mkdir('was_here')"),
    "build": Builds(),
    "fill": Fills(),
    "nested": {"a": [({"b": Calls(os.mkdir, "was_here")},)]},
    "argument": Calls(len, [Calls(os.mkdir, "was_here")]),
}
PICKLES_THAT_RUN: dict[str, bytes] = {
    **{name: pickle.dumps(value, protocol=2) for name, value in OBJECTS_THAT_RUN.items()},
    "protocol-0": pickle.dumps(Calls(os.mkdir, "was_here"), protocol=0),
    "protocol-5": pickle.dumps(Calls(os.mkdir, "was_here"), protocol=5),
    "inst": b"(S'was_here'\nios\nmkdir\n.",
    "obj": b"(cos\nmkdir\nS'was_here'\no.",
    "stack-global": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93\x8c\x08was_here\x85R.",
    "twice": b"cos\nmkdir\nS'was_here'\n\x85R0" + pickle.dumps({"state_dict": {}}),
}
# Each takes much memory or time by a few bytes.
BOMBS: dict[str, bytes] = {
    # Allowed by `weights_only`, and a call: so many zeros.
    "bytearray": b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x60\x85R.",
    "bytearrays": b"\x80\x02]" + b"(cbuiltins\nbytearray\nJ\x00\x00\x00\x20\x85R" * 4 + b"".join([b"la."]),
    "long": b"\x80\x02\x8b\x00\x00\x00\x04" + b"\x7f" * 1000 + b".",
    "binunicode": b"\x80\x02X\x00\x00\x00\x7fabc.",
    "deep": b"\x80\x02" + b"]" * 100000 + b"a" * 99999 + b".",
    "deep-tuples": b"\x80\x02N" + b"\x85" * 100000 + b".",
    "memo": b"\x80\x02]" + b"".join(b"q%c" % n + b"]" + b"h%ch%c\x86" % (n, n) + b"a" for n in range(60)) + b".",
    "put": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "laughs": b"\x80\x02]q\x00" + b"".join(b"]q%c(h%ch%ce" % (n + 1, n, n) for n in range(60)) + b".",
}
# Pickles that only fail, each in a way of its own.
ODD_PICKLES: dict[str, bytes] = {
    "empty": b"", "stop": b".", "none": b"N.", "unknown": b"\xff.", "pop": b"0.", "get": b"h\x00.", "mark": b"(.",
    "tuple": b"\x85.", "ext": b"\x80\x02\x82\x01.", "persid": b"P0\n.", "binpersid": b"\x80\x02NQ.",
    "int": b"\x80\x02Jxxxx.", "self": b"\x80\x02]q\x00h\x00a.",
    "self-dict": b"\x80\x02}q\x00X\x0a\x00\x00\x00state_dicth\x00s.", "unhashable": b"\x80\x02}]Ns.",
    "no-stop": b"\x80\x02N", "no-module": b"cnowhere\nNothing\n.", "utf-8": b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
    "protocol-9": b"\x80\x09N.", "text": b"green", "setitems": b"\x80\x02](NNu.", "appends": b"\x80\x02}(NNe.",
    "build-none": b"\x80\x02NNb.", "newobj": b"\x80\x02NN\x81.",
}  # fmt: skip


def members_of(file: Path) -> Members:
    """The members of an archive, in order."""
    with zipfile.ZipFile(file) as archive:
        return [(entry.filename, archive.read(entry)) for entry in archive.infolist()]


def pack(members: Iterable[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    """An archive with right checksums."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


def with_pickle(file: Path, content: bytes) -> bytes:
    """A checkpoint whose pickle is another."""
    return pack((name, content if name.endswith("/data.pkl") else data) for name, data in members_of(file))


def saved(value: Any) -> bytes:
    """What torch.save would write."""
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def yaml_bomb(levels: int = 9) -> str:
    """Anchors in anchors: ten to the power of `levels` values from a few lines."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for n in range(1, levels):
        lines.append(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]")
    return "\n".join(lines) + "\n"


def yaml_bomb_of_maps(levels: int = 25) -> str:
    """The same of mappings: two to the power of `levels` keys."""
    lines = ["a0: &a0 {x: 1, y: 2}"]
    for n in range(1, levels):
        lines.append(f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}")
    return "\n".join(lines) + "\n"


def shared(value: Any) -> list[list]:
    """Lists that hold one value ten thousand times; a file says it once."""
    return [[value] * 100 for _ in range(100)]


def doubled(levels: int, hold: Callable[[Any], Any]) -> Any:
    """A container that holds one container twice, which holds another one twice: two to the power of `levels` values,
    of a few bytes for each level."""
    value: Any = hold(1)
    for _ in range(levels):
        value = hold(value)
    return value


# Values that are small where they lie, and large for whoever walks, prints, compares or copies them.
GRAFTS: dict[str, Any] = {
    "lists-30": doubled(30, lambda value: [value, value]),
    "lists-60": doubled(60, lambda value: [value, value]),
    "dicts-30": doubled(30, lambda value: {"a": value, "b": value}),
    "dicts-60": doubled(60, lambda value: {"a": value, "b": value}),
    "tuples-30": doubled(30, lambda value: (value, value)),
    "texts": shared("green bottles\n" * 20_000),
    "tensors": shared(torch.ones(100_000)),
}

# Text that would run code, or read what is not its own, if it were taken for an interpolation: at once, or the second
# time that it is resolved.
INTERPOLATIONS: dict[str, str] = {
    "environment": "${oc.env:MY_SECRET}",
    "environment-escaped": "\\${oc.env:MY_SECRET}",
    "environment-escaped-twice": "\\\\\\${oc.env:MY_SECRET}",
    "environment-in-text": "a${oc.env:MY_SECRET}b",
    "environment-older": "${env:MY_SECRET}",
    "class": "${oc.create:{_target_:os.mkdir,path:was_here}}",
    "class-escaped": "\\${oc.create:{_target_:os.mkdir,path:was_here}}",
    "class-escaped-twice": "\\\\\\${oc.create:{_target_:os.mkdir,path:was_here}}",
    "decoded": "${oc.decode:'${oc.env:MY_SECRET}'}",
    "hydra": "${hydra:runtime.cwd}",
    "itself": "${seed}${run_dir}",
    "nothing": "${nothing.at.all}",
    "unclosed": "${",
    "nested": "${" * 500 + "a" + "}" * 500,
    "now": "${now:%Y}",
    "missing": "???",
}

# By which Lightning takes itself for a job of a cluster, and loads checkpoints of certain names.
SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_NTASKS": "1",
    "SLURM_JOB_NAME": "a",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}

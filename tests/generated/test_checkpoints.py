"""Checkpoints from strangers, or damaged: sampled, and those that hold a state of training resumed as well."""

import io
import os
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from math import isclose
from pathlib import Path
from typing import Any

import torch
from generated.attacks import (
    BOMBS,
    GRAFTS,
    OBJECTS_THAT_RUN,
    ODD_PICKLES,
    PICKLES_THAT_RUN,
    members_of,
    pack,
    saved,
    with_pickle,
)
from generated.world import RUN, Case, chance, every

from chargpt.optim import AdamWConfig, lr_factor

Change = Callable[[Path], bytes]  # the good checkpoint; what comes in its place


def cases_of(name: str, change: Change, *kinds: str, **options) -> list[Case]:
    """The change made to the best checkpoint, which is sampled, and to the last one, which is resumed as well."""
    found = []
    for kind in kinds or ("best", "last"):
        file = f"outputs/run/checkpoints/{kind}.ckpt"

        def prepare(box: Path, file: str = file, kind: str = kind) -> None:
            (box / "work" / file).write_bytes(change(box / "work" / file))
            if kind == "last":
                (box / RUN / "checkpoints/previous.ckpt").unlink()

        commands = [("sample.py", "--ckpt", file, "--max-new-tokens", "12", "--seed", "1")]
        if kind == "last":
            commands.append(("train.py", "resume=outputs/run"))
        options = {"stranger": True, "writes": (RUN,)} | options
        found.append(Case(f"{kind}-{name}", commands, prepare, **options))
    return found


# Bytes


def flipped(n: int) -> Change:
    def change(file: Path) -> bytes:
        draw, content = chance("flip", n), bytearray(file.read_bytes())
        for _ in range(draw.choice([1, 1, 3])):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        return bytes(content)

    return change


def cut(n: int) -> Change:
    return lambda file: file.read_bytes()[: chance("cut", n).randrange(file.stat().st_size)]


def overwritten(n: int) -> Change:
    def change(file: Path) -> bytes:
        draw, content = chance("overwrite", n), bytearray(file.read_bytes())
        start = draw.randrange(len(content))
        piece = draw.choice([bytes(200), draw.randbytes(200), content[:200]])
        content[start : start + draw.choice([0, 200])] = piece
        return bytes(content)

    return change


def pickle_flipped(n: int) -> Change:
    """A changed byte in the pickle, under a right checksum."""

    def change(file: Path) -> bytes:
        draw = chance("pickle", n)
        content = bytearray(next(data for name, data in members_of(file) if name.endswith("/data.pkl")))
        content[draw.randrange(len(content))] = draw.randrange(256)
        return with_pickle(file, bytes(content))

    return change


WHOLE: dict[str, Change] = {
    "empty": lambda file: b"",
    "byte": lambda file: b"P",
    "zeros": lambda file: bytes(10000),
    "header": lambda file: file.read_bytes()[:30],
    "end": lambda file: file.read_bytes()[-22:],
    "twice": lambda file: file.read_bytes() * 2,
    "prefixed": lambda file: b"#!/bin/sh\n" + file.read_bytes(),
    "suffixed": lambda file: file.read_bytes() + b"abc",
    "text": lambda file: b"To be or not to be\n" * 100,
    "json": lambda file: b'{"state_dict": {}}',
    "legacy": lambda file: legacy(torch.load(file, weights_only=True)),
    "safetensors": lambda file: b"\x10\0\0\0\0\0\0\0{}              ",
}


def legacy(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


# Members of the archive


def renamed(new: Callable[[str], str]) -> Change:
    return lambda file: pack((new(name), data) for name, data in members_of(file))


def with_member(ending: str, content: Callable[[bytes], bytes | None]) -> Change:
    """A member that is changed, or left out for None."""

    def change(file: Path) -> bytes:
        made = [(name, content(data) if name.endswith(ending) else data) for name, data in members_of(file)]
        return pack([(name, data) for name, data in made if data is not None])

    return change


MEMBERS: dict[str, Change] = {
    "as-it-was": lambda file: pack(members_of(file)),
    "deflated": lambda file: pack(members_of(file), zipfile.ZIP_DEFLATED),
    "bzip2": lambda file: pack(members_of(file), zipfile.ZIP_BZIP2),
    "reversed": lambda file: pack(reversed(members_of(file))),
    "none": lambda file: pack([]),
    "other": lambda file: pack([("a", b"b")]),
    "up": renamed(lambda name: "../" + name),
    "absolute": renamed(lambda name: "/tmp/" + name),
    "other-root": renamed(lambda name: "x/" + name.partition("/")[2]),
    "flat": renamed(lambda name: name.partition("/")[2]),
    "deep": renamed(lambda name: "a/" * 200 + name.partition("/")[2]),
    "odd-name": renamed(lambda name: "é\u202e/" + name.partition("/")[2]),
    "extra": lambda file: pack([*members_of(file), ("x/../../../home/diary.txt", b"gone")]),
    "extra-code": lambda file: pack(
        [*members_of(file), ("archive/code/__torch__.py", b"import os; os.mkdir('was_here')")]
    ),
    "constants": lambda file: pack([*members_of(file), ("best/constants.pkl", PICKLES_THAT_RUN["reduce"])]),
    "bomb": lambda file: pack([*members_of(file), ("archive/zeros", bytes(300 << 20))], zipfile.ZIP_DEFLATED),
    "many": lambda file: pack([*members_of(file), *((f"archive/{n}", b"") for n in range(20000))]),
    **{
        f"{ending.strip('/.')}-{what}": with_member(ending, content)
        for ending in (
            "/data.pkl",
            "/version",
            "/byteorder",
            "/.format_version",
            "/.storage_alignment",
            "/data/0",
            "/data/3",
        )
        for what, content in {
            "missing": lambda data: None,
            "empty": lambda data: b"",
            "half": lambda data: data[: len(data) // 2],
            "more": lambda data: data + bytes(8),
            "nonsense": lambda data: b"\xff" * len(data),
            "number": lambda data: b"99999999999999999999",
        }.items()
    },
    "big-endian": with_member("/byteorder", lambda data: b"big"),
}

# The tree of values

VALUES: dict[str, Any] = {
    "none": None, "true": True, "zero": 0, "minus": -1, "huge": 10**30, "minus-huge": -(10**30), "long": 2**63,
    "int": 2**31, "1e308": 1e308, "tiny": 1e-320, "nan": float("nan"), "inf": float("inf"), "empty": "", "abc": "abc",
    "nul": "\0", "escape": "\x1b[31m", "surrogate": "\ud800", "text": "a" * 100000, "list": [], "dict": {},
    "tuple": (), "bytes": b"abc", "lists": [[]], "mapping": {"a": 1}, "numbers": {1: 2}, "ordered": OrderedDict(a=1),
    "set": {1}, "tensor": torch.tensor(1.0), "no-tensor": torch.zeros(0),
    "big-tensor": torch.zeros(1).expand(10**6, 10**6), "interpolation": "${oc.env:MY_SECRET}",
    "target": {"_target_": "os.mkdir", "path": "was_here"}, "bool-tensor": torch.tensor(True), "half": 0.5,
    "complex": 1j, "path": "../../../home/diary.txt", "dtype": torch.float16, "meta": torch.zeros(3, device="meta"),
}  # fmt: skip

TENSORS: dict[str, Callable[[torch.Tensor], Any]] = {
    "double": lambda t: t.double(),
    "float16": lambda t: t.half(),
    "bfloat16": lambda t: t.bfloat16(),
    "int8": lambda t: t.to(torch.int8),
    "int64": lambda t: t.long(),
    "bool": lambda t: t.bool(),
    "complex": lambda t: t.to(torch.complex64),
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "nan": lambda t: t * float("nan"),
    "inf": lambda t: torch.full_like(t, float("inf")),
    "1e38": lambda t: torch.full_like(t, 3e38),
    "denormal": lambda t: torch.full_like(t, 1e-45),
    "strides-0": lambda t: t.flatten()[:1].expand(t.shape) if t.dim() else t,
    "overlapping": lambda t: t.flatten().as_strided(t.shape, (1,) * t.dim()),
    "transposed": lambda t: t.t() if t.dim() == 2 else t.flip(0) if t.dim() else t,
    "column-major": lambda t: t.t().contiguous().t() if t.dim() == 2 else t,
    "wider": lambda t: torch.cat([t, t]) if t.dim() else t[None],
    "shorter": lambda t: t[:-1] if t.dim() else t,
    "none-of-it": lambda t: t[:0] if t.dim() else t,
    "flat": lambda t: t.flatten(),
    "more-dimensions": lambda t: t[None, None],
    "scalar": lambda t: t.sum(),
    "list": lambda t: t.tolist(),
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "sparse-csr": lambda t: t.to_sparse_csr() if t.dim() == 2 else t.to_sparse(),
    "sparse-huge": lambda t: torch.sparse_coo_tensor(
        torch.zeros(max(1, t.dim()), 0, dtype=torch.long), torch.zeros(0), t.shape or (1,)
    ),
    "gradient": lambda t: t.float().clone().requires_grad_(),
    "parameter": lambda t: torch.nn.Parameter(t.float()),
    "quantized": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "negative": lambda t: torch._neg_view(t) if t.is_floating_point() else t,
    "huge-expanded": lambda t: torch.zeros(1).expand(10**7, 10**4),
    "part-of-a-big-one": lambda t: torch.zeros(5_000_000)[: t.numel()].reshape(t.shape),
}


def walk(node: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths to everything in a tree of containers."""
    if path:
        yield path
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    for key, value in items:
        yield from walk(value, (*path, key))


def replaced(node: Any, path: tuple, change: Callable[[Any], Any] | None) -> Any:
    """The tree with another value at a path, or without it for None."""
    key, *rest = path
    made = list(node) if isinstance(node, list | tuple) else dict(node)
    if rest:
        made[key] = replaced(made[key], tuple(rest), change)
    elif change is None:
        del made[key]
    else:
        made[key] = change(made[key])
    return tuple(made) if isinstance(node, tuple) else made


def at(node: Any, path: tuple) -> Any:
    for key in path:
        node = node[key]
    return node


def changed(path: tuple, change: Callable[[Any], Any] | None) -> Change:
    def make(file: Path) -> bytes:
        return saved(replaced(torch.load(file, weights_only=True), path, change))

    return make


def anywhere(n: int) -> Change:
    """One value or more somewhere in the tree."""

    def make(file: Path) -> bytes:
        draw, tree = chance("anywhere", n), torch.load(file, weights_only=True)
        for _ in range(draw.choice([1, 1, 1, 2])):
            path = draw.choice([path for path in walk(tree) if path[0] != "state_dict" or draw.random() < 0.2])
            change: Callable[[Any], Any] | None = None
            if isinstance(at(tree, path), torch.Tensor) and draw.random() < 0.7:
                what = draw.choice(sorted(TENSORS))
                change = TENSORS[what]
            elif draw.random() < 0.7:
                what = draw.choice(sorted(VALUES))
                change = lambda old, what=what: VALUES[what]  # noqa: E731
            else:
                what = "missing"
            print(path, "is", what)  # shown where the test fails
            try:
                tree = replaced(tree, path, change)
            except (RuntimeError, TypeError, ValueError):  # this tensor cannot be changed that way
                tree = replaced(tree, path, None)
        return saved(tree)

    return make


TABLE = ("state_dict", "net.token_embedding_table.weight")
SETTINGS = (
    "name", "block_size", "n_layer", "n_head", "n_embd", "dropout", "positions", "token_shift", "zero_init",
)  # fmt: skip
CHARACTERS: dict[str, Any] = {
    "none": "", "fewer": lambda old: old[:-1], "more": lambda old: old + "\U0001f600",
    "backwards": lambda old: old[::-1], "repeated": lambda old: old[0] + old[:-1], "list": list, "bytes": str.encode,
    "surrogates": lambda old: old[:-1] + "\ud800", "controls": lambda old: "".join(map(chr, range(len(old)))),
    "many": "".join(map(chr, range(0x20000, 0x30000))), "escapes": lambda old: "\x1b" + old[1:], "number": 5,
    "numbers": lambda old: list(range(len(old))), "dict": lambda old: dict.fromkeys(old), "of-bytes": lambda old: None,
}  # fmt: skip
TOP = (
    "epoch", "global_step", "pytorch-lightning_version", "state_dict", "loops", "callbacks", "optimizer_states",
    "lr_schedulers", "hparams_name", "hyper_parameters",
)  # fmt: skip


def trees() -> list[Case]:
    found = []
    for name, value in TENSORS.items():
        found += cases_of(f"table-{name}", changed(TABLE, value))
    for key in SETTINGS:
        for name in ("none", "true", "zero", "minus", "huge", "nan", "abc", "list", "tensor", "target"):
            found += cases_of(
                f"model.{key}-{name}",
                changed(("hyper_parameters", "model", key), lambda old, n=name: VALUES[n]),
                "last",
            )
    for name, value in CHARACTERS.items():
        change = value if callable(value) else lambda old, value=value: value
        found += cases_of(f"characters-{name}", changed(("hyper_parameters", "characters"), change))
    for key in TOP:
        found += cases_of(f"{key}-missing", changed((key,), None), "last")
        for name in ("none", "huge", "abc", "list", "numbers", "tensor", "text"):
            found += cases_of(f"{key}-{name}", changed((key,), lambda old, n=name: VALUES[n]), "last")
    for version in ("0.0.1", "1.0.0", "1.9.5", "99.9", "abc", "", "2.6.6\x1b[31m"):
        found += cases_of(
            f"version-{version.encode('unicode_escape').decode()}",
            changed(("pytorch-lightning_version",), lambda old, v=version: v),
            "last",
        )
    for n in range(90):
        found += cases_of(f"anywhere-{n}", anywhere(n), "last" if n % 4 else "best")
    return found


# Bombs in a good tree

SITES = {"best": 90, "last": 130}  # how many `sites` there are, at least


def sites(tree: Any) -> list[tuple]:
    """The paths in a tree, of many that are alike the first: of lists, of the parameters' states, of Lightning's
    counts."""
    found = {}
    for path in walk(tree):
        if not any(isinstance(key, int) and key > 0 for key in path):
            found.setdefault((path[0], path[-1]) if path[0] == "loops" else path, path)
    return list(found.values())


def grafted(kind: str, n: int, name: str) -> Change:
    """At a path, in place of what is there."""

    def make(file: Path) -> bytes:
        tree = torch.load(file, weights_only=True)
        paths = sites(tree)
        assert len(paths) <= SITES[kind], len(paths)
        print(paths[n % len(paths)], "is", name)  # shown where the test fails
        return padded(replaced(tree, paths[n % len(paths)], lambda old: GRAFTS[name]))

    return make


def added(path: tuple, name: str) -> Change:
    """Under a new key beside what is there, or after it, in a container."""

    def more(old: Any) -> Any:
        return {**old, "new": GRAFTS[name]} if isinstance(old, dict) else [*old, GRAFTS[name]]

    return lambda file: padded(replaced(torch.load(file, weights_only=True), path, more))


def padded(tree: dict) -> bytes:
    """A file so large that it may hold some ten thousand values."""
    return saved({**tree, "padding": torch.zeros(100_000)})


CONTAINERS: list[tuple] = [
    ("state_dict",), ("loops",), ("loops", "fit_loop", "state_dict"), ("callbacks",), ("callbacks", "RunRecord"),
    ("optimizer_states", 0), ("optimizer_states", 0, "state"), ("optimizer_states", 0, "state", 0),
    ("optimizer_states", 0, "param_groups", 0), ("optimizer_states", 0, "param_groups", 0, "params"),
    ("lr_schedulers", 0), ("lr_schedulers", 0, "base_lrs"), ("hyper_parameters",), ("hyper_parameters", "model"),
    ("hyper_parameters", "optimizer"), ("hyper_parameters", "corpus"), ("random_states",), ("random_states", 0),
]  # fmt: skip


def grafts() -> list[Case]:
    """At every key a bomb, drawn, and each of them beside what else there is."""
    found = []
    for kind, count in SITES.items():
        for n in range(count):
            [name] = chance("graft", kind, n).sample(sorted(GRAFTS), 1)
            found += cases_of(f"graft-{n}-{name}", grafted(kind, n, name), kind)
    for path in CONTAINERS:
        for name in GRAFTS:
            found += cases_of(f"{'.'.join(map(str, path))}-and-{name}", added(path, name), "last")
    return found


# The learning rate that a schedule has

SCHEDULED: dict[str, dict[str, Any]] = {
    "good": {}, "later": {"last_epoch": 10**6}, "much-later": {"last_epoch": 10**30}, "before": {"last_epoch": -9},
    "peak": {"base_lrs": [1e3, 1e3]}, "peak-of-nan": {"base_lrs": [float("nan")] * 2}, "one-peak": {"base_lrs": [1.0]},
    "no-peak": {"base_lrs": []}, "last": {"_last_lr": [1e3, 1e3]}, "steps": {"_step_count": 10**6},
    "lambdas": {"lr_lambdas": [{"factor": 9}, {}]}, "one-lambda": {"lr_lambdas": [None]}, "more": {"abc": 1},
    "method": {"get_lr": 5}, "step": {"step": "abc"}, "optimizer": {"optimizer": None}, "class": {"__class__": "abc"},
    "underscores": {"__dict__": {}}, "called": {"_get_lr_called_within_step": True}, "initial": {"_is_initial": True},
    "verbose": {"verbose": True},
}  # fmt: skip


def schedules() -> list[Case]:
    """Whatever a file says of the schedule, the settings say how it goes on, here in the middle of a warm-up."""
    found = []
    for name, state in SCHEDULED.items():

        def change(file: Path, state: dict = state) -> bytes:
            tree = torch.load(file, weights_only=True)
            tree["hyper_parameters"]["optimizer"]["warmup_steps"] = 5
            tree["lr_schedulers"][0] |= state
            settings = file.parents[1] / ".hydra/config.yaml"
            text = settings.read_text(encoding="utf-8")
            assert "warmup_steps: 0\n" in text
            settings.write_text(text.replace("warmup_steps: 0\n", "warmup_steps: 5\n"), encoding="utf-8")
            return saved(tree)

        found += cases_of(f"schedule-{name}", change, "last", holds=has_rate, succeeds=name == "good")
    return found


def has_rate(box: Path) -> list[str]:
    """What is wrong with the learning rate after step 4 of a warm-up of 5."""
    config = AdamWConfig(warmup_steps=5)
    tree = torch.load(box / RUN / "checkpoints/last.ckpt", weights_only=True)
    rates = [group["lr"] for group in tree["optimizer_states"][0]["param_groups"]]
    expected = config.lr * lr_factor(config, tree["global_step"], 4)
    right = tree["global_step"] == 4 and all(isclose(rate, expected) for rate in rates)
    return [] if right else [f"LEARNING RATES {rates}, not {expected}, at step {tree['global_step']}"]


def pickles() -> list[Case]:
    found = []
    for group in (PICKLES_THAT_RUN, BOMBS, ODD_PICKLES):
        for name, content in group.items():
            found += cases_of(f"pickle-{name}", lambda file, content=content: with_pickle(file, content), "last")
            found += cases_of(f"raw-pickle-{name}", lambda file, content=content: content, "best")
    for name, value in OBJECTS_THAT_RUN.items():
        for key in ("state_dict", "callbacks", "hyper_parameters", "loops", "new"):
            found += cases_of(
                f"object-{name}-in-{key}",
                lambda file, key=key, value=value: saved(torch.load(file, weights_only=True) | {key: value}),
                "last",
            )
    for name, content in BOMBS.items():  # beside all that a checkpoint has
        found += cases_of(f"beside-{name}", lambda file, content=content: beside(file, content), "last")
    return found


def beside(file: Path, content: bytes) -> bytes:
    """A good checkpoint whose pickle begins with another one, of which the result is dropped."""
    good = next(data for name, data in members_of(file) if name.endswith("/data.pkl"))
    return with_pickle(file, content.removesuffix(b".") + b"0" + good[2:])


# In place of the file


def put(make: Callable[[Path, Path], object], *names: str) -> Callable[[Path], None]:
    """Something else in the place of checkpoints; `make` gets the place and the sandbox."""

    def prepare(box: Path) -> None:
        for name in names:
            place = box / RUN / "checkpoints" / name
            place.unlink(missing_ok=True)
            make(place, box)

    return prepare


def tar(place: Path, box: Path) -> None:
    with tarfile.open(place, "w") as archive:
        archive.add(box / "work/verse.txt", "pickle")


def a_sparse_file(place: Path, box: Path) -> None:
    place.touch()
    os.truncate(place, 20 << 20)


PLACES: dict[str, Callable[[Path, Path], object]] = {
    "nothing": lambda place, box: None,
    "folder": lambda place, box: place.mkdir(),
    "fifo": lambda place, box: os.mkfifo(place),
    "link-to-nothing": lambda place, box: place.symlink_to("nowhere"),
    "link-to-itself": lambda place, box: place.symlink_to(place.name),
    "link-to-the-diary": lambda place, box: place.symlink_to(box / "home/diary.txt"),
    "link-to-zeros": lambda place, box: place.symlink_to("/dev/zero"),
    "link-to-a-folder": lambda place, box: place.symlink_to(box / "home"),
    "hard-link-to-the-diary": lambda place, box: os.link(box / "home/diary.txt", place),
    "tar": tar,
    "sparse": a_sparse_file,
}


def places() -> list[Case]:
    found = []
    for name, make in PLACES.items():
        for which in (
            ("best.ckpt",),
            ("last.ckpt",),
            ("last.ckpt", "previous.ckpt"),
            ("best.ckpt", "last.ckpt", "previous.ckpt"),
        ):
            commands = [
                ("sample.py", "--ckpt", "outputs/run", "--max-new-tokens", "5"),
                ("train.py", "resume=outputs/run"),
            ]
            found.append(
                Case(f"{name}-for-{'-'.join(which)}", commands, put(make, *which), stranger=True, writes=(RUN,))
            )
    return found


CASES = [
    *(case for n in range(30) for case in cases_of(f"flip-{n}", flipped(n), "last" if n % 2 else "best")),
    *(case for n in range(20) for case in cases_of(f"cut-{n}", cut(n), "last" if n % 2 else "best")),
    *(case for n in range(20) for case in cases_of(f"overwrite-{n}", overwritten(n), "last" if n % 2 else "best")),
    *(case for n in range(70) for case in cases_of(f"pickle-byte-{n}", pickle_flipped(n), "last" if n % 4 else "best")),
    *(case for name, change in WHOLE.items() for case in cases_of(f"whole-{name}", change)),
    *(case for name, change in MEMBERS.items() for case in cases_of(f"member-{name}", change, "last")),
    *trees(),
    *grafts(),
    *schedules(),
    *pickles(),
    *places(),
]


@every(CASES)
def test_a_checkpoint_is_used_or_refused_in_a_line(case, world):
    world.check(case)

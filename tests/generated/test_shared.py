"""Shared folders from strangers, or damaged: sampled, scored and started from; and what stands where one is written."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from generated.test_checkpoints import PLACES, at, replaced, walk
from generated.test_sampling_arguments import VALUES as ARGUMENTS
from generated.world import RUN, TINY, Case, chance, every, name_of

from chargpt.checkpoint import read_checkpoint
from chargpt.share import contents_of
from chargpt.shared import CARD, CONFIG, FILES, LONGEST, WEIGHTS

SHARE, EVALUATE = "chargpt/share.py", "chargpt/evaluate.py"
SAMPLED = ("sample.py", "--ckpt", "shared", "--max-new-tokens", "12", "--seed", "1", "--device", "cpu")
SCORED = (EVALUATE, "--ckpt", "shared", "--text", "verse.txt", "--unknown", "skip", "--device", "cpu")
STARTED = ("train.py", "init_from=shared", "hydra.run.dir=outputs/new", *TINY[:2], *TINY[6:])
Change = Callable[[bytes], bytes]  # the content of a good file; what comes in its place


def furnish(box: Path) -> Path:
    """A good folder."""
    folder = box / "work/shared"
    folder.mkdir()
    for name, content in contents_of(read_checkpoint(box / RUN / "checkpoints/best.ckpt")).items():
        (folder / name).write_bytes(content)
    return folder


def case_of(id: str, name: str, change: Change, *commands: tuple[str, ...], **options) -> Case:
    def prepare(box: Path) -> None:
        file = furnish(box) / name
        file.write_bytes(change(file.read_bytes()))

    options = {"stranger": True, "writes": ("work/outputs/new",)} | options
    return Case(f"{name}-{id}", [*commands] or [SAMPLED], prepare, **options)


# Bytes


def mutated(name: str, n: int) -> Change:
    """Bits flipped, bytes overwritten, left out or doubled, most of them where the settings or the header are."""

    def change(content: bytes) -> bytes:
        draw, made = chance("bytes", name, n), bytearray(content)
        for _ in range(draw.choice([1, 1, 3])):
            place = draw.randrange(min(len(made), draw.choice([8, 200, 3000, 10**6])))
            length = draw.choice([0, 1, 8, 200])
            match draw.randrange(4):
                case 0:
                    made[place] ^= 1 << draw.randrange(8)
                case 1:
                    made[place : place + length] = draw.randbytes(length)
                case 2:
                    made[place : place + length] = b""
                case 3:
                    made[place:place] = made[place : place + length]
        return bytes(made)

    return change


def cut(name: str, n: int) -> Change:
    return lambda content: content[: chance("cut", name, n).randrange(len(content))]


WHOLE: dict[str, Change] = {
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(10000),
    "ones": lambda content: b"\xff" * 10000,
    "twice": lambda content: content * 2,
    "more": lambda content: content + b"a",
    "utf-16": lambda content: content.decode("latin-1").encode("utf-16"),
    "mark": lambda content: b"\xef\xbb\xbf" + content,
    "text": lambda content: b"To be or not to be\n" * 100,
}

# JSON that costs much, or that some readers take

BOMBS: dict[str, bytes] = {
    "lists": b"[" * (LONGEST - 1),
    "lists-side-by-side": b"[" + b"[]," * (LONGEST // 3 - 2) + b"[]]",
    "mappings": b'{"a":' * (LONGEST // 5),
    "mappings-side-by-side": b"[" + b"{}," * (LONGEST // 3 - 2) + b"{}]",
    "mappings-of-one": b"[" + b'{"":0},' * (LONGEST // 7 - 2) + b"{}]",
    "keys": b"{" + b"".join(b'"%x":0,' % n for n in range(LONGEST // 10)) + b'"":0}',
    "digits": b"1" * LONGEST,
    "digits-4000": b"[" + b",".join([b"1" * 4000] * (LONGEST // 4002)) + b"]",
    "exponent": b"1e999999999",
    "text": b'"' + b"a" * (LONGEST - 2) + b'"',
    "escapes": b'"' + b"\\u0000" * (LONGEST // 6 - 2) + b'"',
    "beyond": b" " * (LONGEST + 1),
    "spaces": b" " * LONGEST,
    "nan": b"NaN",
    "infinity": b"[-Infinity]",
    "same-key": b'{"a":0,' * 2 + b'"a":0}}',
    "surrogate": b'{"\\ud800":"\\udfff"}',
    "two": b"{}{}",
    "comment": b"/* a */ {}",
    "python": b"{'a': __import__('os').mkdir('was_here')}",
}
VALUES: dict[str, Any] = {
    "none": None, "true": True, "zero": 0, "minus": -1, "one": 1, "half": 0.5, "huge": 10**30, "long": 2**63,
    "longer": 10**4000, "size": 10**8, "1e308": 1e308, "tiny": 1e-320, "nan": float("nan"), "inf": float("inf"),
    "empty": "", "abc": "abc", "nul": "\0", "escape": "\x1b[31m\u202e", "surrogate": "\ud800", "text": "a" * 100_000,
    "list": [], "lists": [[[]]], "numbers": [1, 2], "dict": {}, "mapping": {"a": {"b": 1}},
    "odd-key": {"\ud800\x1b": 1},
    "interpolation": "${oc.env:MY_SECRET}", "target": {"_target_": "os.mkdir", "path": "was_here"},
    "path": "../../home/diary.txt", "F16": "F16", "I64": "I64", "C64": "C64", "F8_E4M3": "F8_E4M3",
    "many": ["a"] * 10_000, "deep": json.loads("[" * 400 + "]" * 400),
}  # fmt: skip


def in_header(change: Change) -> Change:
    """The same for the header of the weights, whose length is then right."""

    def make(content: bytes) -> bytes:
        length = int.from_bytes(content[:8], "little")
        header = change(content[8 : 8 + length])
        return len(header).to_bytes(8, "little") + header + content[8 + length :]

    return make


def anywhere(name: str, n: int) -> Change:
    """One value or more in the tree that JSON describes, changed, left out, added or said twice."""

    def make(content: bytes) -> bytes:
        draw, tree = chance("anywhere", name, n), json.loads(content)
        for _ in range(draw.choice([1, 1, 1, 2])):
            path = draw.choice([*walk(tree)])
            what = draw.choice(sorted(VALUES))
            match draw.randrange(4):
                case 0:
                    tree = replaced(tree, path, None)
                case 1 if isinstance(at(tree, path), dict):
                    tree = replaced(tree, path, lambda old, what=what: {**old, "new": VALUES[what]})
                case 1 if isinstance(at(tree, path), list):
                    tree = replaced(tree, path, lambda old, what=what: [*old, VALUES[what]])
                case 2 if isinstance(at(tree, path), int):
                    change = draw.choice([-8, -1, 1, 8, 2**31, 2**32, 2**63, 2**64])
                    tree = replaced(tree, path, lambda old, change=change: old + change)
                case _:
                    tree = replaced(tree, path, lambda old, what=what: VALUES[what])
        made = json.dumps(tree).encode()
        return made.replace(b"}", b', "name": "a", "name": "b"}', 1) if draw.random() < 0.1 else made

    return make


LENGTHS = [0, 1, 7, 10**4, LONGEST, LONGEST + 1, 100_000_000, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1]


def with_length(length: int) -> Change:
    return lambda content: length.to_bytes(8, "little") + content[8:]


def many_tensors(content: bytes) -> bytes:
    """As many as a header has room for, of one number each."""
    count = LONGEST // 80
    about = (f'"{n}":{{"dtype":"F32","shape":[1],"data_offsets":[{4 * n},{4 * n + 4}]}}' for n in range(count))
    header = f"{{{','.join(about)}}}".encode()
    return len(header).to_bytes(8, "little") + header + bytes(4 * count)


def files() -> Iterator[Case]:
    for name in (CONFIG, WEIGHTS):
        yield from (case_of(f"bytes-{n}", name, mutated(name, n)) for n in range(150))
        yield from (case_of(f"cut-{n}", name, cut(name, n)) for n in range(20))
        yield from (case_of(f"whole-{what}", name, change, SAMPLED, SCORED, STARTED) for what, change in WHOLE.items())
        inside = in_header if name == WEIGHTS else lambda change: change
        for what, content in BOMBS.items():
            yield case_of(f"json-{what}", name, inside(lambda _, content=content: content))
        yield from (case_of(f"anywhere-{n}", name, inside(anywhere(name, n))) for n in range(250))
        yield from (case_of(f"used-{n}", name, inside(anywhere(name, n)), SCORED, STARTED) for n in range(250, 300))
    yield from (case_of(f"length-{length}", WEIGHTS, with_length(length)) for length in LENGTHS)
    yield case_of("many", WEIGHTS, many_tensors)
    same = {"succeeds": True, "stranger": False}
    yield case_of("as-it-was", CONFIG, lambda content: content, SAMPLED, SCORED, STARTED, **same)
    yield case_of("as-it-was", WEIGHTS, in_header(lambda content: content + b" " * 9), SAMPLED, SCORED, STARTED, **same)


# In place of a file


REGULAR = ("sparse", "tar", "hard-link-to-the-diary")  # the others are no files


def places() -> Iterator[Case]:
    for what, make in PLACES.items():
        for name in FILES:

            def prepare(box: Path, name: str = name, make: Callable = make) -> None:
                place = furnish(box) / name
                place.unlink()
                make(place, box)

            used = [SAMPLED, SCORED, STARTED]
            yield Case(f"{name}-is-{what}", used, prepare, stranger=True, writes=("work/outputs/new",))
            if what not in REGULAR or name == CONFIG:  # otherwise it is one of ours, if damaged
                yield Case(f"onto-{name}-that-is-{what}", [(SHARE, "shared")], prepare, holds=is_not_written)


def is_not_written(box: Path) -> list[str]:
    return ["WRITTEN over what is no share"]


# Where one is written

NEW = ("work/new",)


def targets() -> Iterator[Case]:
    run = ("--ckpt", "outputs/run")
    for good in ("new", "new/deep/er", "./new", "outputs/../new"):
        commands = [(SHARE, *run, good), (SHARE, "--ckpt", good, good), ("sample.py", "--ckpt", good)]
        yield Case(f"to-{name_of(good)}", commands, writes=NEW, succeeds=True)
    for value in (
        *ARGUMENTS,
        "outputs",
        "outputs/run",
        "outputs/run/checkpoints",
        "../home",
        "/dev",
        "/",
        "/proc/1",
        "~",
    ):
        # Other names may be made, as folders that hold nothing but ours; what was there stays as it was.
        plain = value.encode(errors="surrogateescape").decode(errors="replace").lstrip("./").split("/")[0]
        yield Case(f"to-{name_of(value)}", [(SHARE, *run, value)], writes=(f"work/{value}", f"work/{plain}"))
        yield Case(f"of-{name_of(value)}", [(SHARE, "--ckpt", value, "new")], writes=NEW)
    for name in ("notes.txt", ".hidden", CARD, WEIGHTS, CONFIG):

        def prepare(box: Path, name: str = name) -> None:
            (box / "work/new").mkdir()
            (box / "work/new" / name).write_text("mine", encoding="utf-8")

        yield Case(f"beside-{name}", [(SHARE, *run, "new")], prepare, holds=is_not_written)


CASES = [*files(), *places(), *targets()]


@every(CASES, sample=9)
def test_a_shared_folder_is_used_or_refused_in_a_line(case, world):
    world.check(case)

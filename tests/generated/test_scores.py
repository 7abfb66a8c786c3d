"""Arguments of chargpt.evaluate and chargpt.compare, checkpoints that tell odd things of how they were scored, folders
of sweeps, also gone on with, and weights to start from."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from generated.attacks import PICKLES_THAT_RUN
from generated.test_checkpoints import saved, with_pickle
from generated.test_sampling_arguments import DEVICES, VALUES
from generated.world import RUN, TINY, Case, every, name_of

EVALUATE, COMPARE = "chargpt/evaluate.py", "chargpt/compare.py"
CKPT = ("--ckpt", "outputs/run")
LAST = f"{RUN}/checkpoints/last.ckpt"


def case(name: str, *arguments: str, **options) -> Case:
    return Case(name, [(EVALUATE, "--device", "cpu", *arguments)], **options)


def arguments() -> list[Case]:
    found = [
        case(name_of(f"{option} {value}"), *CKPT, option, value)
        for option in ("--ckpt", "--text", "--stride", "--unknown", "--device", "--json")
        for value in (*VALUES, "/dev/zero", "/proc/self/mem", "outputs", "outputs/run", "work/fifo", "*.txt", "~")
    ]
    found += [case(f"device-{name_of(device)}", *CKPT, "--device", device) for device in DEVICES]
    good = ("", "--json", "--stride 1", "--stride 8", "--text verse.txt", "--text verse.txt --unknown skip --stride 3")
    good += ("--help", "--ckpt outputs/run outputs/run/checkpoints/last.ckpt", "--ckpt outputs", "--text v*.txt")
    found += [case(name_of(f"good-{line}"), *CKPT, *line.split(), succeeds=True) for line in good]
    for name, content in {
        "nul": b"a\0b",
        "latin": b"caf\xe9",
        "one": b"g",
        "none": b"",
        "odd": "文".encode() * 9,
    }.items():
        for unknown in ("error", "skip"):

            def prepare(box: Path, content: bytes = content) -> None:
                (box / "work/odd.txt").write_bytes(content)

            found.append(
                case(f"text-{name}-{unknown}", *CKPT, "--text", "odd.txt", "--unknown", unknown, prepare=prepare)
            )
    found += [case(f"stdout-{name_of(place)}", *CKPT, stdout=place) for place in ("/dev/full", "/dev/null")]
    return found


ODD = [
    0,
    -1,
    10**9,
    10**30,
    0.5,
    1e-320,
    1.0,
    -1.0,
    float("nan"),
    None,
    True,
    "x",
    "16-mixed",
    "\x1b[2J",
    [],
    {},
    [[1]],
]


def told() -> list[Case]:
    """What a stranger's checkpoint says of how it was scored, and on what."""
    found = []

    def adding(name: str, change: Callable[[dict], object]) -> None:
        def prepare(box: Path) -> None:
            kept = torch.load(box / LAST, weights_only=True)
            change(kept["hyper_parameters"])
            (box / "work/theirs.ckpt").write_bytes(saved(kept))

        found.append(case(name_of(f"told-{name}"), "--ckpt", "theirs.ckpt", prepare=prepare, stranger=True))

    for value in ODD:
        adding(f"scoring={value!r}", lambda kept, value=value: kept.update(scoring=value))
        for key in ("split", "val_fraction", "batch_size", "precision", "more"):
            adding(f"{key}={value!r}", lambda kept, key=key, value=value: kept["scoring"].update({key: value}))
        for key in ("name", "sha256", "val_name", "val_sha256", "test_sha256"):
            adding(f"{key}={value!r}", lambda kept, key=key, value=value: kept["corpus"].update({key: value}))
    return found


# A sweep of two jobs in the sandbox: one that ended, and one that was cut off.

SWEEP = "work/outputs/sweep"
SWEPT = ("-m", *TINY, "trainer.max_steps=4,6", "hydra.sweep.dir=outputs/sweep", "resume=allow")


def a_sweep(box: Path) -> None:
    for n in range(2):
        folder = box / SWEEP / f"{n}_max_steps={4 + 2 * n}"
        shutil.copytree(box / RUN, folder)
        about = {
            "number": n,
            "values": {"trainer.max_steps": 4 + 2 * n},
            "finished": n == 0,
            "error": None,
            "max_steps": 4 + 2 * n,
        }
        (folder / "job.json").write_text(json.dumps(about), encoding="utf-8")
        (folder / "losses.csv").write_text(
            "step,seconds,train_loss,val_loss,chars_per_second\n2,1.0,3,3.5,99\n", "utf-8"
        )
    about = {"swept": ["trainer.max_steps"], "fixed": [], "jobs": 2, "arguments": list(SWEPT)}
    (box / SWEEP / "sweep.json").write_text(json.dumps(about), encoding="utf-8")


JSON: dict[str, bytes] = {
    "deep": b"[" * 9_999, "list": b"[]", "null": b"null", "number": b"1", "empty": b"", "binary": b"\xff\xfe",
    "huge": b" " * (2 << 20), "digits": b'{"number": 1' + b"0" * 9999 + b"}", "nan": b'{"jobs": NaN, "number": NaN}',
    "swept": b'{"swept": 5, "jobs": "x", "arguments": [[]], "fixed": {}}', "bool": b'{"jobs": true, "number": true}',
    "values": b'{"number": 0, "values": {"a": 1e999, "\\u001b": "\\u001b"}, "finished": 1, "error": "\\u001b"}',
    "text": b'{"number": 0, "values": {"seed": "${oc.env:HOME}"}, "finished": true, "error": null}',
    "command": b'{"swept": [], "jobs": 9, "arguments": ["\\u001b[2J", "; rm -rf ~", "\\ud800"]}',
    "many": b'{"swept": [], "jobs": 99999999999999999999999, "arguments": null}',
}  # fmt: skip
CSV: dict[str, bytes] = {
    "torn": b"step,seconds,train_loss,val_loss\n2,1,3", "nan": b"2,nan,nan,nan,nan\n", "inf": b"2,inf,inf,1,inf\n",
    "huge": b"9" * 400 + b",1,1,1,1\n", "wide": b"1," * 100_000, "nul": b"\0" * 1000, "long": b"2,1,3,3.5,9\n" * 99_999,
    "quote": b'"' * 100_000, "far": b"1,1e300,1e300,1e300,1e300\n2,-1e300,-1e300,-1e300,-1e300\n",
    "names": b"step\n\x1b[2J,\x1b[2J,3,4,5\n", "same": b"2,1,1,1,1\n2,1,1,1,1\n",
}  # fmt: skip


def sweeps() -> list[Case]:
    harms: dict[str, Callable[[Path], object]] = {"good": lambda sweep: None}
    for file, contents in (("sweep.json", JSON), ("0_max_steps=4/job.json", JSON), ("0_max_steps=4/losses.csv", CSV)):
        for name, content in contents.items():
            harms[f"{file}-{name}"] = lambda sweep, file=file, content=content: (sweep / file).write_bytes(content)
    for file in (
        "sweep.json",
        "0_max_steps=4/job.json",
        "0_max_steps=4/losses.csv",
        "table.csv",
        "sweep.png",
        "multirun.yaml",
    ):

        def linked(sweep: Path, file: str = file) -> None:
            (sweep / file).unlink(missing_ok=True)
            (sweep / file).symlink_to("../../../../home/diary.txt" if "/" in file else "../../../home/diary.txt")

        def piped(sweep: Path, file: str = file) -> None:
            (sweep / file).unlink(missing_ok=True)
            os.mkfifo(sweep / file)

        def folder(sweep: Path, file: str = file) -> None:
            (sweep / file).unlink(missing_ok=True)
            (sweep / file).mkdir()

        harms |= {f"{file}-link": linked, f"{file}-pipe": piped, f"{file}-folder": folder}
    harms["job-link"] = lambda sweep: (sweep / "2_max_steps=8").symlink_to("/etc")
    harms["itself"] = lambda sweep: (sweep / "2_max_steps=8").symlink_to(".")
    harms["code"] = lambda sweep: (sweep / "1_max_steps=6/checkpoints/last.ckpt").write_bytes(
        with_pickle(sweep / "0_max_steps=4/checkpoints/last.ckpt", PICKLES_THAT_RUN["reduce"])
    )
    found = []
    for name, harm in harms.items():

        def prepare(box: Path, harm: Callable[[Path], object] = harm) -> None:
            a_sweep(box)
            harm(box / SWEEP)

        commands = {
            "compare": [(COMPARE, "outputs/sweep")],
            "evaluate": [(EVALUATE, "--ckpt", "outputs/sweep", "--device", "cpu")],
            "told": [("train.py", "-m", "resume=outputs/sweep")],
        }
        if name == "good" or name.startswith(("sweep.json", "job-link", "code", "multirun.yaml", "table")):
            commands["gone-on-with"] = [("train.py", *SWEPT)]
        for command, lines in commands.items():
            options = {"writes": (SWEEP,), "stranger": command != "gone-on-with", "seconds": 30.0}
            succeeds = name == "good" and command != "told"
            found.append(Case(name_of(f"sweep-{name}-{command}"), lines, prepare, succeeds=succeeds, **options))
    found += [Case(name_of(f"compare {value}"), [(COMPARE, value)], a_sweep, writes=(SWEEP,)) for value in VALUES]
    return found


def initial() -> list[Case]:
    fresh = tuple(each for each in TINY if not each.startswith("model."))
    found = [
        Case(name_of(f"init_from={value}"), [("train.py", *fresh, f"init_from={value}")], writes=("work/outputs",))
        for value in (*VALUES, "outputs/run", "outputs", "/dev/zero", "${oc.env:HOME}", "{a:1}")
    ]
    for name, attack in PICKLES_THAT_RUN.items():

        def prepare(box: Path, attack: bytes = attack) -> None:
            (box / "work/theirs.ckpt").write_bytes(with_pickle(box / LAST, attack))

        command = ("train.py", *fresh, "init_from=theirs.ckpt")
        found.append(Case(f"init_from-{name_of(name)}", [command], prepare, writes=("work/outputs",), stranger=True))
    for more in ("model.n_layer=2", "model.dropout=0.5", "model=bigram", "resume=outputs/run", "data=pydocs"):
        command = ("train.py", *fresh, "init_from=outputs/run", *more.split())
        found.append(Case(name_of(f"init_from-and-{more}"), [command], writes=("work/outputs",)))
    return found


@every([*arguments(), *told(), *sweeps(), *initial()])
def test_they_are_scored_or_refused_in_a_line(case, world):
    world.check(case)

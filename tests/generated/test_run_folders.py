"""Folders of runs from strangers, or damaged: resumed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from generated.attacks import (
    BOMBS,
    GRAFTS,
    INTERPOLATIONS,
    OBJECTS_THAT_RUN,
    PICKLES_THAT_RUN,
    SLURM,
    saved,
    with_pickle,
    yaml_bomb,
    yaml_bomb_of_maps,
)
from generated.world import NEW, RUN, TINY, Case, chance, every, leave, name_of
from helpers import composed
from omegaconf import OmegaConf

RESUME = [("train.py", "resume=outputs/run")]


def case(name: str, prepare: Callable[[Path], object], *overrides: str, **options) -> Case:
    options = {"stranger": True, "writes": (RUN,), "commands": [(*RESUME[0], *overrides)]} | options
    return Case(name, prepare=prepare, **options)


# Odd things in the place of what a run has, or will write

THERE = [
    "", ".hydra", ".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml", "checkpoints",
    "checkpoints/last.ckpt", "checkpoints/best.ckpt", "checkpoints/previous.ckpt", "train.log", "hparams.yaml",
    "EVENTS",
]  # fmt: skip
TO_COME = [
    ".hydra/config.yaml.tmp", ".hydra/.config.yaml.tmp", "checkpoints/.last.ckpt.tmp", "checkpoints/.best.ckpt.tmp",
    "checkpoints/last.ckpt.tmp", "checkpoints/.lock", ".lock", "run.lock", "train.log.lock",
    "checkpoints/last-v1.ckpt", "events.out.tfevents.9999999999.vm.1.0", "lightning_logs", "hpc_ckpt_1.ckpt", "text",
    "val_loss",
]  # fmt: skip


def _moved(place: Path, box: Path) -> None:
    """What was there lies in the home now, and a link leads to it."""
    if place.exists():
        os.rename(place, box / "home/moved")
    else:
        (box / "home/moved").write_text("the user's own\n", encoding="utf-8")
    place.symlink_to(box / "home/moved")


def _hard_link(place: Path, box: Path) -> None:
    """What was there is a file of the home, too."""
    if place.is_file():
        os.link(place, box / "home/twin")
    else:
        os.link(box / "home/diary.txt", place)


ODD: dict[str, Callable[[Path, Path], object]] = {
    "nothing": lambda place, box: None,
    "folder": lambda place, box: place.mkdir(),
    "fifo": lambda place, box: os.mkfifo(place),
    "empty": lambda place, box: place.touch(),
    "nonsense": lambda place, box: place.write_bytes(bytes(range(256))),
    "link-to-the-diary": lambda place, box: place.symlink_to(box / "home/diary.txt"),
    "link-to-nothing": lambda place, box: place.symlink_to(box / "home/made"),
    "link-to-the-home": lambda place, box: place.symlink_to(box / "home"),
    "link-to-itself": lambda place, box: place.symlink_to(place.name),
    "link-to-zeros": lambda place, box: place.symlink_to("/dev/zero"),
}
KEPT = {"moved-and-linked": _moved, "hard-link": _hard_link}


def _place(box: Path, name: str) -> Path:
    run = box / RUN
    return next(run.glob("events.*")) if name == "EVENTS" else run / name if name else run


def odd_places() -> list[Case]:
    found = []
    for name in (*THERE, *TO_COME):
        for odd, make in {**ODD, **KEPT}.items():
            if (name in TO_COME and odd in ("nothing", "link-to-itself")) or (not name and odd == "hard-link"):
                continue

            def prepare(box: Path, name: str = name, odd: str = odd, make: Callable = make) -> None:
                place = _place(box, name)
                place.parent.mkdir(exist_ok=True)
                if odd not in KEPT and (place.exists() or place.is_symlink()):
                    shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()
                if odd == "hard-link" and place.is_dir():
                    place = place / "a"
                make(place, box)

            writes = (RUN, "home/moved") if not name else (RUN,)  # a run may lie elsewhere, a part of it not
            found.append(case(f"{odd}-at-{name.replace('/', '_') or 'the-run'}", prepare, writes=writes))
    return found


# Checkpoints that Lightning would take unasked


def unasked() -> list[Case]:
    found = []
    for where in ("", "checkpoints", ".hydra"):
        for what in ("reduce", "protocol-5", "inst"):
            for name, environment in (("", {}), ("-slurm", SLURM)):

                def prepare(box: Path, where: str = where, what: str = what) -> None:
                    (box / RUN / where / "hpc_ckpt_1.ckpt").write_bytes(PICKLES_THAT_RUN[what])

                found.append(case(f"hpc-{what}-in-{where or 'run'}{name}", prepare, environment=environment))
    for what in OBJECTS_THAT_RUN:

        def prepare(box: Path, what: str = what) -> None:
            (box / RUN / "hpc_ckpt_7.ckpt").write_bytes(saved(OBJECTS_THAT_RUN[what]))

        found.append(case(f"hpc-saved-{what}-slurm", prepare, environment=SLURM))

        def prepare(box: Path, what: str = what) -> None:
            (box / "work/outputs/new").mkdir()
            (box / "work/outputs/new/hpc_ckpt_7.ckpt").write_bytes(saved(OBJECTS_THAT_RUN[what]))

        # Lightning looks for them where a run is new.
        options = {"commands": [("train.py", *TINY, NEW)], "writes": ("work/outputs/new",)}
        found.append(case(f"hpc-saved-{what}-new-run-slurm", prepare, environment=SLURM, **options))
    for number in ("1", "99999999999999999999", "-1", "a", ""):

        def prepare(box: Path, number: str = number) -> None:
            shutil.copy(box / RUN / "checkpoints/best.ckpt", box / RUN / f"hpc_ckpt_{number}.ckpt")

        found.append(case(f"hpc-weights-{number or 'none'}", prepare, environment=SLURM))
    return found


# Values in the configuration


def leaves() -> list[str]:
    found = []

    def walk(node: object, path: str) -> None:
        if isinstance(node, dict):
            for name, value in node.items():
                walk(value, f"{path}.{name}" if path else name)
        else:
            found.append(path)

    walk(OmegaConf.to_container(composed()), "")
    return found


MKDIR = {"_target_": "os.mkdir", "path": "was_here"}
VALUES: dict[str, object] = {
    **INTERPOLATIONS, "target": MKDIR, "targets": [MKDIR], "nested-target": {"a": [{"b": MKDIR}]},
    "name-of-code": "os.mkdir", "home": "../home", "outside": "../../home/made", "absolute": "/proc/self/environ",
    "null": None, "true": True, "zero": 0, "minus": -1, "huge": 10**30, "1e308": 1e308, "1e-320": 1e-320,
    "nan": float("nan"), "inf": float("inf"), "empty": "", "abc": "abc", "list": [], "dict": {}, "numbers": [1, 2, 3],
    "text": "a" * 100000, "controls": "\x1b[2J\r\x07", "two-lines": "a\nb", "long": 2**63, "bytes": b"abc",
    "odd": "\u202e\u2028",
}  # fmt: skip
KEYS = sorted({
    *leaves(), "trainer.default_root_dir", "trainer.plugins", "trainer.profiler", "trainer.strategy",
    "trainer.callbacks", "callbacks.x", "callbacks.x._target_", "trainer.logger.version", "x", "hydra",
    "trainer.barebones", "trainer.limit_val_batches", "trainer.fast_dev_run", "trainer.max_time", "data", "model",
    "trainer", "callbacks", "optimizer", "trainer.logger",
})  # fmt: skip
LONG = ("trainer.max_steps", "callbacks.text_samples.length", "trainer.num_sanity_val_steps", "trainer")


def written(key: str, value: object) -> Callable[[Path], object]:
    """The run's configuration with another value."""

    def prepare(box: Path) -> None:
        file = box / RUN / ".hydra/config.yaml"
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        node = content
        *parents, last = key.split(".")
        for name in parents:
            if not isinstance(node.get(name), dict):
                node[name] = {}
            node = node[name]
        node[last] = value
        file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")

    return prepare


def values() -> list[Case]:
    found = []
    for key in KEYS:
        for name in chance("value", key).sample(sorted(VALUES), 2):
            long = 8.0 if key in LONG else None
            found.append(case(f"{key}-is-{name}", written(key, VALUES[name]), stop_after=long))
    for name in INTERPOLATIONS:  # where they would be resolved, or resolved again
        for key in ("callbacks.text_samples.prompt", "data.path", "optimizer.schedule"):
            if f"{key}-is-{name}" not in {each.id for each in found}:
                found.append(case(f"{key}-is-{name}", written(key, VALUES[name])))
    return found


# Configurations as text

TEXTS: dict[str, str | bytes] = {
    "empty": "", "null": "null\n", "list": "- 1\n", "number": "5\n", "text": "abc\n", "tab": "a:\n\tb: 1\n",
    "unclosed": "a: [1\n", "python-object": "x: !!python/object/apply:os.mkdir [was_here]\n",
    "python-name": "x: !!python/name:os.mkdir\n", "python-new": "x: !!python/object/new:os.mkdir [was_here]\n",
    "python-module": "x: !!python/module:os\n", "tag": "x: !abc 1\n", "itself": "a: &a [*a]\n",
    "map-in-itself": "a: &a {b: *a}\n", "no-anchor": "a: *b\n", "merge": "a: &a {x: 1}\nb: {<<: *a}\n",
    "merge-itself": "a: &a {<<: *a}\n", "merge-text": "<<: abc\n", "bomb": yaml_bomb(),
    "bomb-of-maps": yaml_bomb_of_maps(), "deep-lists": "a: " + "[" * 5000 + "]" * 5000,
    "deep-maps": "a: " + "{a: " * 3000 + "}" * 3000, "deep-open": "[" * 20000,
    "long-number": "seed: " + "9" * 100000 + "\n", "sexagesimal": "seed: 1:2:3:4\n", "date": "seed: 2001-12-14\n",
    "set": "a: !!set {b}\n", "binary": "a: !!binary abc\n", "omap": "a: !!omap [b: 1]\n",
    "two-documents": "a: 1\n---\nb: 2\n", "directive": "%YAML 9.9\n---\na: 1\n", "twice": "seed: 1\nseed: 2\n",
    "number-key": "1: 2\n", "null-key": "null: 2\n", "list-key": "? [a]\n: 1\n", "map-key": "? {a: 1}\n: 1\n",
    "bool-key": "true: 1\n", "float-key": "1.5: 1\n", "empty-key": "'': 1\n", "dotted-key": "trainer.max_steps: 9\n",
    "latin": b"a: caf\xe9\n", "nul": b"a: \0\n", "bom": b"\xef\xbb\xbfseed: 1\n",
    "utf-16": "seed: 1\n".encode("utf-16"), "escapes": 'a: "\\e[2J"\n', "control": b"a: \x1b[2J\n",
    "next-line": "a: b\x85c\n", "surrogate": 'a: "\\ud800"\n', "missing": "seed: ???\n",
    "large": "a: 1\n" * 3 + "b: " + "x" * 3_000_000 + "\n", "many": "".join(f"k{n}: {n}\n" for n in range(20000)),
    "dashes": "---\n" * 1000, "brackets-key": "a[0]: 1\n", "interpolated-key": "${seed}: 1\n",
    "hydra-choices-list": "hydra: {runtime: {choices: [data]}}\n",
    "hydra-choice-up": "hydra: {runtime: {choices: {model: ../../train}}}\n",
    "hydra-choice-list": "hydra: {runtime: {choices: {data: [file]}}}\n",
    "hydra-choice-map": "hydra: {runtime: {choices: {data: {a: 1}}}}\n",
    "hydra-choice-other": "hydra: {runtime: {choices: {schema: x, model: bigram, hydra/launcher: abc}}}\n",
    "hydra-choice-odd": "hydra: {runtime: {choices: {'data\\n': 'file', data: 'file ~model'}}}\n",
    "hydra-is-text": "hydra: abc\n",
    "hydra-interpolated": "hydra: {runtime: {choices: {data: '${oc.env:MY_SECRET}'}}}\n",
    "hydra-empty": "hydra: {runtime: {choices: {}}}\n",
}  # fmt: skip


def texts() -> list[Case]:
    found = []
    for n, (name, text) in enumerate(TEXTS.items()):
        content = text if isinstance(text, bytes) else text.encode()
        for file in ("config.yaml", "hydra.yaml"):
            if not (file == "config.yaml" and name.startswith("hydra-")):

                def prepare(box: Path, content: bytes = content, file: str = file) -> None:
                    (box / RUN / ".hydra" / file).write_bytes(content)

                found.append(case(f"{file}-{name}", prepare))

        def prepare(box: Path, content: bytes = content) -> None:
            with (box / RUN / ".hydra/config.yaml").open("ab") as file:
                file.write(b"\n" + content)

        if n % 3 == 0 or "bomb" in name:
            found.append(case(f"appended-{name}", prepare))
    for n in range(30):

        def prepare(box: Path, n: int = n) -> None:
            draw, file = chance("yaml", n), box / RUN / ".hydra" / ("hydra.yaml" if n % 3 == 0 else "config.yaml")
            content = bytearray(file.read_bytes())
            for _ in range(draw.choice([1, 3, 10])):
                content[draw.randrange(len(content))] = draw.choice(b"\0\n\t :-[]{}&*!|>'\"%@`#a0\xff")
            file.write_bytes(content)

        found.append(case(f"yaml-byte-{n}", prepare, stop_after=8.0))
    return found


# Names of folders, ways to say resume, and the environment

NAMES = [
    "a b", "a,b", "a=b", "0_a=1,b='2'c", 'a"b', "a'b", "'a'", '"a"', "a\\", "a\\'b", "é", "\U0001f600", "\udcff",
    "a\nb", "a\tb", "\x1b[2J", "-m", "--help", "~a", "+a", "auto", "null", "???", "[a]", "{a}", "{a:1}", "(a)", "*",
    "a*", "#a", "%s", "%(message)s", "{}", "$HOME", "$MY_SECRET", "$(mkdir was_here)", "`mkdir was_here`", ";a", "a:b",
    "a@b", "a|b", "x" * 200, "..a", " a", "a ", "\u202ea", "${seed}", "${nothing}", "${oc.env:MY_SECRET}",
    "\\${oc.env:MY_SECRET}", "${now:%Y}", "a${oc.create:{_target_:os.mkdir,path:was_here}}", "${", "$", "${}", "1e5",
    "true", "choice(1,2)", "range(1,3)", "glob(*)", "a.b", "checkpoints", ".hydra", "photos::b", "memory::b", "a::b::c",
    "file::b", "::a", "a::", "simplecache::b", "~", "~root", "--ckpt", "-", "--", "file:", "a::\x1b[2J",
]  # fmt: skip
GOOD_NAMES = (
    "a b", "a,b", "a=b", "0_a=1,b='2'c", 'a"b', "a'b", "'a'", '"a"', "a\\", "a\\'b", "é", "\U0001f600", "-m", "--help",
    "[a]", "{a}", "(a)", "#a", "%s", "%(message)s", "{}", "$HOME", "$MY_SECRET", "a:b", "a@b", "x" * 200, " a", "a ",
    "$", "1e5", "true", "a.b", "null", "auto", "~a", "~", "-",
)  # fmt: skip
# How a folder in the working directory is said, and the same as a path: what a library might take for an address.
ADDRESSES = {
    "file://run": "file:/run", "s3://run": "s3:/run", "memory://run": "memory:/run", "photos::run": "photos::run",
    "file:///run": "file:/run", "~": "~", "~/run": "~/run", "-run": "-run", "--run": "--run", "-": "-", "--": "--",
    "http://127.0.0.1:9/run": "http:/127.0.0.1:9/run", "local://run::a": "local:/run::a",
    "simplecache::run": "simplecache::run",
}  # fmt: skip


def names() -> list[Case]:
    found = []
    for n, name in enumerate(NAMES):

        def prepare(box: Path, name: str = name) -> None:
            (box / RUN).rename(box / "work/outputs" / name)

        options = {"writes": (f"work/outputs/{name}",), "succeeds": name in GOOD_NAMES}
        commands = [("train.py", f"resume=outputs/{name}"), ("sample.py", "--ckpt", f"outputs/{name}")]
        # What is quoted is what was typed.
        found.append(case(name_of(f"called-{name}"), prepare, commands=commands, stranger=False, **options))
        if n % 2 or "::" in name or "\x1b" in name:  # nobody typed it
            found.append(case(name_of(f"auto-{name}"), prepare, commands=[("train.py", "resume=auto")], **options))
        if not set(name) & set("'\"\\{\n\t\udcff"):  # these would have to be escaped, or are none
            commands = [("train.py", *TINY, f"hydra.run.dir='outputs/{name}'")]
            found.append(case(name_of(f"new-{name}"), leave, commands=commands, stranger=False, **options))
    for said, place in ADDRESSES.items():

        def prepare(box: Path, place: str = place) -> None:
            (box / "work" / place).parent.mkdir(parents=True, exist_ok=True)
            (box / RUN).rename(box / "work" / place)

        options = {"writes": (f"work/{place.partition('/')[0]}",), "stranger": False}
        commands = [("train.py", f"resume={said}"), ("sample.py", f"--ckpt={said}")]
        found.append(case(name_of(f"address-{said}"), prepare, commands=commands, **options))
        commands = [("train.py", *TINY, f"hydra.run.dir='{said}'")]
        found.append(case(name_of(f"new-at-{said}"), leave, commands=commands, **options))
    return found


# A run in another place, and a hostile one beside it


def goes_on(box: Path, run: str = RUN) -> list[str]:
    """What is wrong where a run should have gone on, from step 2 to 4."""
    try:
        step = torch.load(box / run / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    except Exception as error:
        step = f"no step: {error!r}"
    return [] if step == 4 else [f"{run} is at {step}"]


def _in_last(change: Callable[[Path], bytes]) -> Callable[[Path], object]:
    def harm(run: Path) -> None:
        for name in ("last", "previous"):
            file = run / f"checkpoints/{name}.ckpt"
            file.write_bytes(change(file))

    return harm


def _with(key: str, value: object) -> Callable[[Path], bytes]:
    return lambda file: saved(torch.load(file, weights_only=True) | {key: value, "padding": torch.zeros(100_000)})


NEWER: dict[str, Callable[[Path], object]] = {
    "truncated": _in_last(lambda file: file.read_bytes()[:9999]),
    "code": _in_last(lambda file: with_pickle(file, PICKLES_THAT_RUN["reduce"])),
    **{f"bomb-{name}": _in_last(lambda file, name=name: with_pickle(file, BOMBS[name])) for name in BOMBS},
    **{
        f"{key}-of-{name}": _in_last(_with(key, GRAFTS[name]))
        for key in ("callbacks", "hyper_parameters", "loops", "global_step", "lr_schedulers")
        for name in ("lists-30", "dicts-60", "texts")
    },
    "version": _in_last(_with("pytorch-lightning_version", "\x1b[2J")),
    "callback": _in_last(_with("callbacks", {"\x1b[2J": {}, "\x9ba": {"dirpath": "/dev/\x1b[2J"}})),
    "path": _in_last(_with("callbacks", {"a": {"dirpath": "file://\x1b[2J"}})),
    "finished": _in_last(_with("global_step", 4)),
    "far": _in_last(_with("global_step", -(10**30))),
    "empty": lambda run: shutil.rmtree(run / ".hydra"),
    "fifo": lambda run: os.mkfifo(run / "a"),
    "fifo-of-a-name": lambda run: os.mkfifo(run / "\x1b[2J"),
    "link": lambda run: (run / "a").symlink_to("/etc"),
    "link-of-a-name": lambda run: (run / "\x1b[2J\r\u202e").symlink_to("/etc"),
    "link-to-itself": lambda run: (run / "a").symlink_to("a"),
    "folder": lambda run: [(run / "checkpoints/last.ckpt").unlink(), (run / "checkpoints/last.ckpt").mkdir()],
    "hpc": lambda run: shutil.copy(run / "checkpoints/last.ckpt", run / "hpc_ckpt_1.ckpt"),
    "config-folder": lambda run: [(run / ".hydra/config.yaml").unlink(), (run / ".hydra/config.yaml").mkdir()],
    **{
        f"{file}-{name}": lambda run, file=file, name=name: (run / ".hydra" / file).write_bytes(
            text.encode() if isinstance(text := TEXTS[name], str) else text
        )
        for file in ("config.yaml", "hydra.yaml")
        for name in ("bomb", "bomb-of-maps", "deep-lists", "itself", "python-object", "escapes", "latin", "empty")
    },
}


def copied() -> list[Case]:
    found = []
    for name in ("copy", "a copy, of=it", "copy::b"):

        def prepare(box: Path, name: str = name) -> None:
            shutil.copytree(box / RUN, box / "work/outputs" / name)

        commands = [("train.py", f"resume=outputs/{name}"), ("sample.py", "--ckpt", f"outputs/{name}")]
        options = {"commands": commands, "writes": (f"work/outputs/{name}",), "succeeds": "::" not in name}
        found.append(case(name_of(f"copied-{name}"), prepare, **options))
    for name in ("newer", "\x1b[2J\r", "${oc.env:MY_SECRET}", "a\nb", "\udcff", "photos::b"):
        for harmed, harm in NEWER.items():
            if name != "newer" and harmed not in ("truncated", "empty", "link", "callback", "finished"):
                continue

            def prepare(box: Path, name: str = name, harm: Callable[[Path], object] = harm) -> None:
                run = box / "work/outputs" / name
                shutil.copytree(box / RUN, run)
                harm(run)
                for file in (box / RUN).rglob("*.ckpt"):
                    os.utime(file, (10**9, 10**9))

            def one_of_them_goes_on(box: Path, other: str = f"work/outputs/{name}") -> list[str]:
                return goes_on(box) and goes_on(box, other)

            # It is passed over, or gone on with where nothing is wrong with it that one can see.
            commands, writes = [("train.py", "resume=auto")], (RUN, f"work/outputs/{name}")
            options = {"commands": commands, "writes": writes, "succeeds": True, "holds": one_of_them_goes_on}
            found.append(case(name_of(f"beside-{harmed}-called-{name}"), prepare, **options))
    return found


# Rows of an earlier logger, cut where it was killed

# What names a class has to be said again.
CSV = "trainer.logger={_target_: lightning.pytorch.loggers.CSVLogger, save_dir: '${run_dir}', name: csv, version: ''}"
ROWS = b"lr,step,train/loss,val/loss\r\n0.0003,1,3.38,\r\n0.0003,2,3.37,\r\n,2,,3.36\r\n0.0003,13,3.1,4.2\r\n"
LAST_ROW = ROWS.rindex(b"0.0003,13")
ODD_ROWS = {
    "empty": b"", "header": b"lr,step\r\n", "no-step": b"lr,loss\r\n1,2\r\n", "nul": ROWS + b"\0\0\0",
    "latin": ROWS + b"\xe9",
    "zeros": bytes(1000), "more-columns": ROWS + b"1,2,3,4,5,6\r\n", "quote": ROWS + b'"1,2,3',
    "text": ROWS + b"1,abc,3,4\r\n",
    "huge-step": ROWS + b"1," + b"9" * 5000 + b",3,4\r\n", "huge-field": ROWS + b"1,2," + b"9" * 200_000 + b",4\r\n",
    "twice": b"step,step,step\r\n1,2,3\r\n", "half-step": ROWS + b"1,2.5,3,4\r\n", "blank-lines": ROWS + b"\r\n\r\n",
    "formula": ROWS + b"=1+1,2,3,4\r\n",
    "many-columns": b"step," + b",".join(b"a%d" % n for n in range(20000)) + b"\r\n1\r\n",
}  # fmt: skip


def rows() -> list[Case]:
    def kept(content: bytes) -> Callable[[Path], object]:
        def prepare(box: Path) -> None:
            (box / RUN / "csv").mkdir()
            (box / RUN / "csv/metrics.csv").write_bytes(content)

        return prepare

    cuts = range(LAST_ROW, len(ROWS) + 1)
    found = [case(f"rows-cut-at-{n - LAST_ROW}", kept(ROWS[:n]), CSV, succeeds=True, holds=goes_on) for n in cuts]
    found += [case(f"rows-{name}", kept(content), CSV) for name, content in ODD_ROWS.items()]
    for name, odd in ODD.items():

        def prepare(box: Path, odd: Callable[[Path, Path], object] = odd) -> None:
            (box / RUN / "csv").mkdir()
            odd(box / RUN / "csv/metrics.csv", box)

        found.append(case(f"rows-file-{name}", prepare, CSV))
    return found


# Where the text was

TEXT_PATHS: list[object] = [
    "/dev/zero", "/dev/stdin", "/proc/self/mem", "/proc/self/environ", "/", "..", "~", "$HOME", "**", "/**", "/dev/*",
    "/proc/*/mem", "[", "[!", "", " ", "a\nb", "\x1b[2J", "\u202e", "file:///etc/hostname", "http://127.0.0.1:9/a",
    "photos::verse.txt", "-", "--help", "a" * 5000, "a/" * 3000, "*" * 3000, "**/" * 300, "../home/diary.txt",
    ["verse.txt"],
    {"a": "verse.txt"}, 1, 1.5, True, b"verse.txt", "verse.txt\0", "./verse.txt", "outputs/../verse.txt", "v*.txt",
]  # fmt: skip
GOOD_TEXT_PATHS = ("./verse.txt", "outputs/../verse.txt", "v*.txt")


def text_paths() -> list[Case]:
    return [
        case(name_of(f"text-at-{key}-{path}"), written(key, path), succeeds=path in GOOD_TEXT_PATHS)
        for key in ("data.path", "data.val_path", "data.test_path")
        for path in TEXT_PATHS
    ]


def locks() -> list[Case]:
    """What stands where a new run has its lock."""
    found = []
    for name in ("folder", "fifo", "link-to-the-diary", "link-to-nothing", "link-to-itself", "empty", "nonsense"):

        def prepare(box: Path, name: str = name) -> None:
            (box / "work/outputs/new").mkdir()
            ODD[name](box / "work/outputs/new/.lock", box)

        options = {"commands": [("train.py", *TINY, NEW)], "writes": ("work/outputs/new",), "succeeds": name == "empty"}
        found.append(case(f"{name}-at-.lock-of-a-new-run", prepare, **options))
    return found


ENVIRONMENTS: list[dict[str, str | None]] = [
    SLURM, SLURM | {"SLURM_NTASKS": "2"}, SLURM | {"SLURM_JOB_NAME": "bash"},
    {"SLURM_JOB_ID": "abc", "SLURM_NTASKS": "abc"}, {"RANK": "abc"}, {"LOCAL_RANK": "0"}, {"LOCAL_RANK": "abc"},
    {"LOCAL_RANK": "1"}, {"WORLD_SIZE": "abc"}, {"NODE_RANK": "abc"},
    {"GROUP_RANK": "0", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "1"},
    {"MASTER_ADDR": "abc", "MASTER_PORT": "abc"}, {"PL_GLOBAL_SEED": "abc"}, {"PL_GLOBAL_SEED": "7"},
    {"PL_SEED_WORKERS": "abc"}, {"PL_TRAINER_MAX_STEPS": "9"}, {"PL_TRAINER_DEVICES": "abc"},
    {"PL_TRAINER_DEFAULT_ROOT_DIR": "BOX/home"}, {"PL_TRAINER_LOGGER": "abc"}, {"PL_TRAINER_CALLBACKS": "abc"},
    {"PL_TRAINER_PLUGINS": "abc"}, {"HYDRA_FULL_ERROR": "0"}, {"HYDRA_MAIN_MODULE": "os"},
    {"LANG": "C", "LC_ALL": "C"}, {"LC_ALL": "abc"}, {"HOME": "BOX/nowhere"}, {"HOME": ""}, {"HOME": None},
    {"TMPDIR": "BOX/nowhere"}, {"TMPDIR": "/dev/null"}, {"TMPDIR": ""}, {"XDG_CACHE_HOME": "BOX/work/verse.txt"},
    {"XDG_CACHE_HOME": "BOX/a/b/c"}, {"XDG_CACHE_HOME": "/dev/null"}, {"XDG_CACHE_HOME": "/proc/a"},
    {"CHARGPT_DATA_DIR": "BOX/nowhere"}, {"PATH": None}, {"TERM": "abc"}, {"COLUMNS": "-1"},
    {"COLUMNS": "abc", "LINES": "abc"}, {"NO_COLOR": "1"}, {"USER": "\udcff"}, {"PYTHONBREAKPOINT": "os.abort"},
    {"CUDA_VISIBLE_DEVICES": "abc"}, {"TZ": "abc"}, {"KUBERNETES_PORT": "abc", "RANK": "0"},
    {"LSB_JOBID": "1", "LSB_DJOB_RANKFILE": "BOX/nowhere", "JSM_NAMESPACE_LOCAL_RANK": "0"},
    {"OMPI_COMM_WORLD_RANK": "abc"}, {"TPU_NAME": "abc"}, {"XRT_TPU_CONFIG": "abc"}, {"TORCH_HOME": "/dev/null"},
    {"TQDM_MININTERVAL": "abc"}, {"TQDM_DISABLE": "abc"}, {"MY_SECRET": None}, {"LIGHTNING_CLOUD_APP_ID": "abc"},
    {"GIT_DIR": "abc"}, {"SOURCE_DATE_EPOCH": "abc"},
]  # fmt: skip


def environments() -> list[Case]:
    return [
        Case(name_of(f"environment-{environment}"), [*RESUME], environment=environment, writes=(RUN, "a"))
        for environment in ENVIRONMENTS
    ]


SAID = [
    "outputs/run", "outputs/run/", "./outputs//run", "outputs/../outputs/run", "auto", "outputs",
    "outputs/run/checkpoints", "BOX", "outputs/run/checkpoints/last.ckpt", "outputs/run/.hydra",
    "outputs/run/.hydra/config.yaml", "/dev/null", "notes.txt", "'outputs/run'", '"outputs/run"',
    "outputs/run outputs/run", "~/run", "$HOME", "outputs/run*", "{outputs/run}", "outputs/run,auto", "a" * 5000,
]  # fmt: skip
MORE = [
    "", "trainer.max_steps=8", "trainer.max_steps=1", "trainer.max_steps=nan", "optimizer.lr=1",
    "callbacks.throughput=null", "~callbacks",
]  # fmt: skip


GOOD = (
    "outputs/run", "outputs/run/", "./outputs//run", "outputs/../outputs/run", "auto", "'outputs/run'", '"outputs/run"',
    "", "trainer.max_steps=8", "callbacks.throughput=null",
)  # fmt: skip


def lines() -> list[Case]:
    """A good run, and ways to say that it should go on."""
    found = []
    for word in SAID:
        options = {"succeeds": True, "holds": goes_on} if word in GOOD else {}
        commands = [("train.py", f"resume={word}")]
        found.append(Case(name_of(f"say-{word}"), commands, writes=("work/outputs",), **options))
    for each in MORE:
        found.append(Case(name_of(f"with-{each}"), [(*RESUME[0], *each.split())], writes=(RUN,), succeeds=each in GOOD))
    # Twice, and once more when all is done.
    commands = [*RESUME, *RESUME, (*RESUME[0], "trainer.max_steps=6")]
    found.append(Case("again", commands, writes=(RUN,), succeeds=True))
    return found


CASES = [
    *odd_places(),
    *unasked(),
    *values(),
    *texts(),
    *names(),
    *copied(),
    *rows(),
    *text_paths(),
    *locks(),
    *environments(),
    *lines(),
]


@every(CASES)
def test_a_run_goes_on_or_is_refused_in_a_line(case, world):
    world.check(case)

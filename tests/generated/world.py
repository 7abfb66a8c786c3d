"""A world for one case: a user's home, a folder to work in, a run in it; and what must hold whatever is tried there.

A case is a sandbox, changed by `prepare`, and commands that are run in it. To add a kind of case (a folder of a sweep,
another script), write a `test_*.py` beside this file that makes a list of cases:

    CASES = [Case(f"lr-{value}", [("train.py", *TINY, f"optimizer.lr={value}")]) for value in EXTREMES]

    @every(CASES)
    def test_it(case, world):
        world.check(case)
"""

import hashlib
import os
import random
import re
import shlex
import shutil
import stat
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from forks import forks

# A run of a moment in the sandbox.
TINY = (
    "data=file",
    "data.path=verse.txt",
    "model.n_layer=1",
    "model.n_head=2",
    "model.n_embd=8",
    "model.block_size=8",
    "data.batch_size=2",
    "trainer.max_steps=2",
    "trainer.val_check_interval=2",
    "trainer.limit_val_batches=2",
    "trainer.log_every_n_steps=1",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "callbacks.last_checkpoint.every_n_steps=2",
    "callbacks.text_samples.length=4",
)
RUN = "work/outputs/run"  # in the sandbox: a run that was interrupted after step 2 of 4
NEW = "hydra.run.dir=outputs/new"
SECRET = "correct-horse-battery-staple"
KILLED = 20.0  # seconds
MEMORY = 2 << 30  # bytes that a process may map beyond what all begin with
# Ours, argparse's, and what Hydra says of --package.
ERROR = r"(\w+\.py: )?error: |package '.*' not found in config$"
STRANGERS_MEMORY = 300 << 20  # bytes that it may take for what a stranger's small file says


def leave(box: Path) -> None:
    """The sandbox as it is."""


@dataclass(frozen=True)
class Case:
    """What is tried.

    Attributes:
        id: says what it is; the same case has the same one in every run.
        commands: each a script and its arguments, run in the sandbox's `work`, one after the other.
        prepare: changes the sandbox before.
        environment: changes to the environment; None takes a name away.
        stdin: what the commands read.
        stdout: where they write, a file in the sandbox or a device.
        writes: what they may change or make, folders and files of the sandbox; the cache and `tmp` always.
        stop_after: seconds until Ctrl-C, where a command may rightly run for ever.
        stranger: whether what `prepare` left is a stranger's work: it may take little memory, and say nothing that
            moves the cursor of a terminal.
        succeeds: whether every command must do what it is told; otherwise it may also refuse.
        holds: what must be true of the sandbox after the last command, told as what is wrong; not after a refusal.
        seconds: until it is killed, which fails.
    """

    id: str
    commands: list[tuple[str, ...]]
    prepare: Callable[[Path], object] = leave
    environment: dict[str, str | None] = field(default_factory=dict)
    stdin: bytes = b""
    stdout: str = "stdout"
    writes: tuple[str, ...] = ()
    stop_after: float | None = None
    stranger: bool = False
    succeeds: bool = False
    holds: Callable[[Path], list[str]] = lambda box: []
    seconds: float = KILLED


def every(cases: list[Case], sample: int = 6):
    """Parametrize a test by cases, of which a few, evenly chosen, run by default and all others as `generated`."""
    ids = [case.id for case in cases]
    assert len(set(ids)) == len(ids), "two cases of one name"
    shown = {case.id for case in cases[:: max(1, len(cases) // sample)][:sample]}
    marked = [pytest.param(case, id=case.id, marks=[] if case.id in shown else pytest.mark.generated) for case in cases]
    return pytest.mark.parametrize("case", marked)


def chance(*what: object) -> random.Random:
    """Randomness that follows from what it is for, on every machine."""
    return random.Random(repr(what))


def name_of(value: object) -> str:
    """A value in a test's id: printable, and short."""
    whole = str(value).encode("unicode_escape").decode()
    text = re.sub(r"[^\w.,=+~${}()<>@%^-]", "_", whole)
    if text == whole and len(text) <= 60:
        return text
    return f"{text[:50]}-{hashlib.sha256(whole.encode()).hexdigest()[:6]}"


def snapshot(box: Path) -> dict[str, tuple]:
    """What lies in a sandbox, links not followed: kind, size, time of the last change and content by name; and what
    stands beside it, in the real home and in the root, where a wrong path would lead: the names alone, in full."""
    beside = (Path("/"), Path.home(), box.parent)
    found: dict[str, tuple] = {str(folder / name): (0,) for folder in beside for name in os.listdir(folder)}
    for entry in sorted(box.rglob("*")):
        status = entry.lstat()
        kind = stat.S_IFMT(status.st_mode)
        about: tuple = (kind,)
        if stat.S_ISLNK(status.st_mode):
            about = (kind, os.readlink(entry))
        elif stat.S_ISREG(status.st_mode):
            about = (kind, status.st_size, status.st_mtime_ns, hashlib.sha256(entry.read_bytes()).hexdigest())
        found[str(entry.relative_to(box))] = about
    return found


@dataclass
class Outcome:
    status: int
    seconds: float
    late: bool
    left: bool
    memory: int
    stdout: str
    stderr: str


class World:
    """Where cases are run.

    Args:
        folder: for the sandboxes; those of cases that pass are removed.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.template = folder / "template"
        self._furnish(self.template)

    def _furnish(self, box: Path) -> None:
        """A home, a text, another run, and a run that was interrupted."""
        for folder in ("home/photos", "work/outputs", "cache", "tmp"):
            (box / folder).mkdir(parents=True)
        for name in ("home/diary.txt", "home/.bashrc", "home/photos/cat.jpg", "work/notes.txt", "work/mine.py"):
            (box / name).write_text(f"what {name} says\n", encoding="utf-8")
        verse = "".join(f"{n} green bottles hanging on the wall, and {n * 7 % 13} fell.\n" for n in range(40))
        (box / "work/verse.txt").write_text(verse, encoding="utf-8")
        made = self.run(box, "train.py", *TINY, "hydra.run.dir=outputs/run")
        assert made.status == 0, made.stderr
        config = box / RUN / ".hydra" / "config.yaml"
        text = config.read_text(encoding="utf-8")
        assert "max_steps: 2\n" in text
        config.write_text(text.replace("max_steps: 2\n", "max_steps: 4\n"), encoding="utf-8")
        shutil.copy(box / RUN / "checkpoints/last.ckpt", box / RUN / "checkpoints/previous.ckpt")
        (box / RUN / "notes.txt").write_text("the user's own\n", encoding="utf-8")
        for name in ("stdin", "stdout", "stderr"):
            (box / name).unlink()

    def sandbox(self, name: str) -> Path:
        box = self.folder / hashlib.sha256(name.encode(errors="replace")).hexdigest()[:12]
        shutil.rmtree(box, ignore_errors=True)
        shutil.copytree(self.template, box, symlinks=True)
        return box

    def run(self, box: Path, script: str, *arguments: str, case: Case | None = None) -> Outcome:
        """Run a script in a sandbox."""
        case = case or Case("", [])
        (box / "stdin").write_bytes(case.stdin)
        for name in ("stdout", "stderr"):
            (box / name).write_bytes(b"")
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "C.UTF-8",
            "HOME": str(box / "home"),
            "XDG_CACHE_HOME": str(box / "cache"),
            "TMPDIR": str(box / "tmp"),
            "OMP_NUM_THREADS": "1",
            "MY_SECRET": SECRET,
            "http_proxy": "http://127.0.0.1:9",  # nobody listens there
            "https_proxy": "http://127.0.0.1:9",
        } | case.environment
        given = {key: value.replace("BOX", str(box)) for key, value in environment.items() if value is not None}
        answer = forks().run(
            script,
            *arguments,
            cwd=box / "work",
            environment=given,
            streams=[box / name for name in ("stdin", case.stdout, "stderr")],
            seconds=case.seconds,
            stop_after=case.stop_after,
            memory=MEMORY,
        )
        said = [(box / name).read_bytes().decode(errors="backslashreplace") for name in ("stdout", "stderr")]
        return Outcome(**answer, stdout=said[0], stderr=said[1])

    def check(self, case: Case) -> None:
        """Run a case and hold against it what must hold in all of them."""
        box = self.sandbox(case.id)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some cases are made with what is deprecated, or in beta
            case.prepare(box)
        for n, (script, *arguments) in enumerate(case.commands, start=1):
            before = snapshot(box)
            outcome = self.run(box, script, *arguments, case=case)
            wrong = [*wrong_end(case, outcome, arguments), *wrong_traces(case, outcome, before, box)]
            if n == len(case.commands) and outcome.status == 0:
                wrong += case.holds(box)
            if wrong:
                command = shlex.join([script, *arguments])[:2000]
                pytest.fail(f"{'; '.join(wrong)}\n$ {command}\n{outcome.stderr[-3000:]}\nin {box}", pytrace=False)
        shutil.rmtree(box, ignore_errors=True)


def wrong_end(case: Case, outcome: Outcome, arguments: list[str]) -> list[str]:
    """What is wrong with how a command ended and with what it said."""
    if outcome.late:
        return [f"HANGS: killed after {outcome.seconds:.0f} s"]
    wrong = ["PROCESSES LEFT"] if outcome.left else []
    if outcome.status < 0:
        wrong.append(f"SIGNAL {-outcome.status}")
    elif outcome.status not in (0, 1, 2) and not (case.stop_after is not None and outcome.status == 130):
        wrong.append(f"STATUS {outcome.status}")
    elif case.succeeds and outcome.status != 0:
        wrong.append(f"STATUS {outcome.status} of what must work")
    if "Traceback (most recent call last)" in outcome.stderr:
        lines = [line for line in outcome.stderr.splitlines() if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)]
        wrong.append(f"TRACEBACK {lines[-1][:200] if lines else ''}")
    elif outcome.status in (1, 2):
        lines = outcome.stderr.rstrip("\n").split("\n")
        errors = [line for line in lines if re.match(ERROR, line)]
        if not errors or errors[-1] != lines[-1]:
            wrong.append(f"NO ERROR LINE at the end, but {lines[-1][:200]!r}")
        elif len(errors) > 1 and not {"-m", "--multirun"} & set(arguments):  # the jobs of a sweep have one each
            wrong.append(f"{len(errors)} ERROR LINES")
    if case.stranger and re.search("[\x00-\x08\x0b-\x1f\x7f\x9b]", outcome.stderr):
        wrong.append("CONTROL CHARACTERS in what it says")
    if case.stranger and outcome.memory > STRANGERS_MEMORY:
        wrong.append(f"MEMORY: {outcome.memory >> 20} MiB for a small file")
    return wrong


def wrong_traces(case: Case, outcome: Outcome, before: dict[str, tuple], box: Path) -> list[str]:
    """What is wrong with what a command left behind."""
    after, wrong = snapshot(box), []
    own = ("cache", "tmp", "stdin", "stdout", "stderr", *case.writes)
    refused = outcome.status == 2
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) == after.get(name):
            continue
        happened = "LOST" if name not in after else "MADE" if name not in before else "CHANGED"
        if name.split("/")[-1] == "was_here":
            wrong.append(f"A STRANGER'S CODE RAN: {name}")
        elif not any(name == each or name.startswith(f"{each}/") for each in own) or name.endswith("notes.txt"):
            wrong.append(f"{happened} {name}")
        elif refused and name in before and name.endswith(".ckpt"):
            wrong.append(f"{happened} though refused: {name}")
    for name, about in after.items():
        if stat.S_ISREG(about[0]) and before.get(name) != about and SECRET.encode() in (box / name).read_bytes():
            wrong.append(f"THE SECRET is in {name}")
    return wrong

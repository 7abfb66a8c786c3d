"""A case is train.py in an empty folder with a small text: it trains or is refused in a line, and harms nothing."""

import contextlib
import os
import re
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import helpers
import pytest

if sys.platform != "linux":
    pytest.skip("memory is limited as Linux does it", allow_module_level=True)
import resource

SMALLER = ["data.path=verse.txt", "model.n_layer=1", "model.block_size=8", "trainer.max_steps=2"]
SMALLER += ["trainer.val_check_interval=2", "trainer.limit_val_batches=2", "trainer.log_every_n_steps=1"]
TINY = (*helpers.TINY, *SMALLER, "hydra.run.dir=outputs/new")
VERSE = "".join(f"{n} green bottles hanging on the wall, and {n * 7 % 13} fell.\n" for n in range(40))
MEMORY, SECONDS = 6 << 30, 30  # bytes that a case may map, and how long it may run


class Case(NamedTuple):
    """Arguments of train.py, a function that fills the working folder, and whether the status must be 0."""

    id: str
    arguments: tuple[str, ...]
    prepare: Callable[[Path], object] = lambda folder: None
    succeeds: bool = False


def every(cases: list[Case], sample: int = 12) -> pytest.MarkDecorator:
    """Parametrize a test by cases: some, evenly chosen, run by default, all others with `-m generated`."""
    shown = range(0, len(cases), len(cases) // sample)
    params = [
        pytest.param(case, id=ascii(case.id)[1:-1][:70], marks=() if n in shown else pytest.mark.generated)
        for n, case in enumerate(cases)
    ]
    return pytest.mark.parametrize("case", params)


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Absurd sizes run out of memory, and a case that takes too long fails."""

    def stop(*_: object) -> None:
        pytest.fail(f"still running after {SECONDS} s")  # not an Exception: nothing catches it

    mapped = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    before, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, before[1]))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


def outside(box: Path) -> dict[str, bytes]:
    """The files beside the working folder and the cache, and the names above."""
    files = [file for file in (box / "home").rglob("*") if file.is_file()]
    above = [str(Path(folder, name)) for folder in ("/", box.parent, box) for name in os.listdir(folder)]
    return dict.fromkeys(above, b"") | {str(file): file.read_bytes() for file in files}


def check(case: Case, box: Path) -> None:
    """Run a case: it ends with status 0, or in one line that says what is wrong, and changes nothing elsewhere."""
    for folder in ("home", "work", "cache"):
        (box / folder).mkdir()
    for file in ("home/diary.txt", "work/verse.txt"):
        (box / file).write_text(VERSE, encoding="utf-8")
    case.prepare(box / "work")
    before = outside(box)
    env = {"HOME": f"{box}/home", "XDG_CACHE_HOME": f"{box}/cache", "CHARGPT_DATA_DIR": ""}
    env |= dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")  # no server is there
    with warnings.catch_warnings(), limits():
        warnings.simplefilter("ignore")  # else the project's settings for tests make errors of them
        done = helpers.run_script("train.py", *case.arguments, cwd=box / "work", env=env)
    about = f"status {done.returncode} of: {shlex.join(case.arguments)[-1000:]}\n{done.stderr[-3000:]}"
    assert done.returncode in ((0,) if case.succeeds else (0, 1, 2)), about
    assert "Traceback (most recent call last)" not in done.stderr, about
    if done.returncode:
        assert re.match(r"(train\.py: )?error: ", done.stderr.rstrip("\n").split("\n")[-1]), about
    assert outside(box) == before, about
    assert not list(box.rglob("was_here")), about

"""A text of gigabytes, how long it takes to prepare, and the memory: `python -m benchmarks.large_text`.

The text is made up here, in several files, every fourth of them compressed, beside one of a megabyte in a single file.
What is measured runs in processes of its own, with a cache that is empty at first.
"""

import gzip
import multiprocessing
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.measure import hardware, parser, spread, table

FILES = 8
STEPS = 2000  # batches that are drawn
TINY = ["model.n_layer=1", "model.n_head=1", "model.n_embd=16", "model.block_size=64", "data.batch_size=16"]
TINY += ["trainer.max_steps=2", "trainer.limit_val_batches=1"]
QUIET = [(os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)]  # no messages


def write(folder: Path, megabytes: int, files: int) -> None:
    """A text of so many megabytes, uncompressed: plain ASCII of made-up words."""
    folder.mkdir()
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(1, 9))) for _ in range(5000)]
    paragraph = ("\n".join(" ".join(draw.choices(words, k=12)) for _ in range(15_000))).encode()[: 10**6]
    for n in range(files):
        compressed = files > 1 and n % 4 == 3
        name = folder / f"{n:02}.txt{'.gz' if compressed else ''}"
        with gzip.open(name, "wb", compresslevel=6) if compressed else name.open("wb") as out:
            for _ in range(megabytes // files):
                out.write(paragraph)


PREPARE = """
import re, sys, time
from pathlib import Path
from chargpt.corpus import encode_text
from chargpt.sources import find_text
started = time.perf_counter()
encode_text(find_text("file", sys.argv[1]))
spent = time.perf_counter() - started
print(spent, int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1e3)
"""


def prepare(path: Path) -> tuple[float, float]:
    """Seconds to find and encode a text, and MB that a process which does nothing else takes at most."""
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, str(path)], check=True, stdout=subprocess.PIPE, encoding="ascii"
    )
    spent, memory = map(float, done.stdout.split())
    return spent, memory


def draw(path: str) -> tuple[float, float, float]:
    """Seconds for a batch, and MB of the process's own memory (what is mapped from files left out) before and after."""
    from chargpt.batches import RandomBlocks

    data = _module(path)
    data.setup()
    blocks = RandomBlocks(data.train_ids, 256, 64, seed=1)
    blocks[0]
    before, started = _own_memory(), time.perf_counter()
    for step in range(1, STEPS + 1):
        blocks[step]
    return (time.perf_counter() - started) / STEPS, before, _own_memory()


def _module(path: str) -> Any:
    from chargpt import CharDataModule, DataConfig

    return CharDataModule(DataConfig(source="file", path=path))


def _own_memory() -> float:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) / 1e3


def command(path: Path, folder: Path) -> tuple[float, float]:
    """Seconds from the beginning of `train.py` to its end, after two steps, and MB that it takes at most."""
    arguments = [sys.executable, "train.py", "data=file", f"data.path={path}", *TINY, f"hydra.run.dir={folder}"]
    started = time.perf_counter()
    process = os.posix_spawn(sys.executable, arguments, os.environ | {"HYDRA_FULL_ERROR": "0"}, file_actions=QUIET)
    _, status, used = os.wait4(process, 0)
    assert status == 0, folder
    return time.perf_counter() - started, used.ru_maxrss / 1e3


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--megabytes", type=int, default=2000, help="size of the large text (default 2000)")
    arguments = arguments.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.environ["XDG_CACHE_HOME"] = f"{place}/cache"
        large, small = Path(place, "large"), Path(place, "small")
        write(large, arguments.megabytes, FILES)
        write(small, 1, 1)
        head = ["text", "prepared in, s", "MB/s", "memory, MB", "known again in, ms", "train.py, s", "its memory, MB"]
        rows = [head]
        for name, path, size in (("large", large, arguments.megabytes // FILES * FILES), ("1 MB", small, 1)):
            spent, memory = prepare(path)
            again = [1000 * prepare(path)[0] for _ in range(arguments.repeats)]
            commands = [command(path, Path(place, f"{name}{n}")) for n in range(arguments.repeats)]
            speed = f"{size / spent:.0f}" if size > 1 else ""
            numbers = [spread(again, 1), spread([each for each, _ in commands], 2)]
            rows.append(
                [name, f"{spent:.2f}", speed, f"{memory:.0f}", *numbers, f"{max(taken for _, taken in commands):.0f}"]
            )
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            batch, before, after = pool.submit(draw, str(large)).result()
    print(hardware())
    print(
        f"{arguments.megabytes} MB in {FILES} files, {FILES // 4} of them compressed; medians of {arguments.repeats}\n"
    )
    print(table(rows))
    print(
        f"\n{STEPS:,} batches of 64 x 256 of the large text: {1000 * batch:.2f} ms each; the process's own memory was"
        f" {before:.0f} MB at first, and {after:.0f} MB then"
    )


if __name__ == "__main__":
    main()

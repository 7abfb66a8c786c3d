"""Megabytes of text encoded per second, and the memory it takes: `python -m benchmarks.encoding`.

Each text is made up here and encoded in a process of its own, into an empty cache.
"""

import multiprocessing
import os
import random
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.measure import hardware, parser, peak_memory, spread, table

SCRIPTS = {
    "ASCII": "".join(map(chr, range(32, 127))) + "\n",
    "Latin with accents": "".join(map(chr, [*range(97, 123), *range(0xE0, 0xFF), 32, 10])),
    "Chinese": "".join(map(chr, range(0x4E00, 0x5200))) + "，。\n",
    "emoji": "".join(map(chr, range(0x1F600, 0x1F640))) + " \n",
}


def encode(file: str, cache: str) -> tuple[float, float]:
    """Seconds to encode the file, and MB of memory that the process took at most beyond what it began with."""
    os.environ["XDG_CACHE_HOME"] = cache
    from chargpt.corpus import encode_text
    from chargpt.sources import find_text

    before = peak_memory("cpu")
    started = time.perf_counter()
    corpus = encode_text(find_text("file", file))
    spent = time.perf_counter() - started
    memory = peak_memory("cpu") - before
    whole = Path(file).read_bytes()[: 1 << 20].decode(errors="ignore")
    assert corpus.tokenizer.decode(corpus.ids[: len(whole)]) == whole
    return spent, memory


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--megabytes", type=int, default=200, help="size of each text (default 200)")
    arguments = arguments.parse_args()
    rows = [["text", "characters known", "MB per second", "memory, MB"]]
    with tempfile.TemporaryDirectory() as folder:
        for script, alphabet in SCRIPTS.items():
            paragraph = "".join(random.Random(0).choices(alphabet, k=1 << 18)).encode()
            file = Path(folder, "text.txt")
            with file.open("wb") as out:
                while out.tell() < arguments.megabytes * 1_000_000:
                    out.write(paragraph)
            size = file.stat().st_size / 1e6
            speeds, memory = [], 0.0
            for n in range(arguments.repeats):
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    spent, taken = pool.submit(encode, str(file), f"{folder}/cache{n}").result()
                speeds.append(size / spent)
                memory = max(memory, taken)
                for encoded in Path(folder, f"cache{n}").rglob("*.uint*"):
                    encoded.unlink()
            rows.append([script, str(len(alphabet)), spread(speeds, digits=0), f"{memory:.0f}"])
    print(hardware())
    print(f"{arguments.megabytes} MB of each; medians of {arguments.repeats} (range)\n")
    print(table(rows))


if __name__ == "__main__":
    main()

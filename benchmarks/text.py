"""How fast a text of gigabytes is prepared, and the memory that it takes: `python -m benchmarks.text`.

Texts are made up here: plain ASCII in eight files, two of them compressed, and one file in each of other scripts. Each
is prepared in a separate process, with a separate cache.
"""

import gzip
import multiprocessing
import os
import random
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.measure import hardware, parser, peak_memory, seconds, spread, table

SCRIPTS = {
    "ASCII": "".join(map(chr, range(32, 127))) + "\n",
    "Latin with accents": "".join(map(chr, [*range(97, 123), *range(0xE0, 0xFF), 32, 10])),
    "Chinese": "".join(map(chr, range(0x4E00, 0x5200))) + "，。\n",
    "emoji": "".join(map(chr, range(0x1F600, 0x1F640))) + " \n",
}
BATCHES = 1000  # of 64 x 256 characters


def write(folder: Path, alphabet: str, megabytes: int, files: int) -> None:
    folder.mkdir()
    paragraph = "".join(random.Random(0).choices(alphabet, k=1 << 18)).encode()
    for n in range(files):
        compressed = n % 4 == 3
        name = folder / f"{n}.txt{'.gz' if compressed else ''}"
        with gzip.open(name, "wb") if compressed else name.open("wb") as out:
            for _ in range(megabytes * 10**6 // files // len(paragraph) + 1):
                out.write(paragraph)


def prepare(folder: str, cache: str) -> list[float]:
    """Seconds to encode a text, to find it encoded, and to draw a batch; MB of memory beyond what Python takes."""
    os.environ["XDG_CACHE_HOME"] = cache
    from chargpt import CharDataModule, DataConfig
    from chargpt.batches import RandomBlocks

    def setup() -> CharDataModule:
        data = CharDataModule(DataConfig(source="file", path=folder))
        data.setup()
        return data

    before = peak_memory("cpu")
    encoded = seconds(setup)
    memory = peak_memory("cpu") - before
    found = seconds(setup)
    data = setup()
    blocks = RandomBlocks(data.train_ids, data.config, data.tokenizer.vocab_size)
    drawn = seconds(lambda: [blocks[step] for step in range(BATCHES)]) / BATCHES
    return [encoded, found, drawn, memory]


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--megabytes", type=int, default=2000, help="size of each text (default 2000)")
    arguments = arguments.parse_args()
    rows = [["text", "MB per second", "found again in, ms", "a batch, ms", "memory, MB"]]
    for script, alphabet in SCRIPTS.items():
        results = []
        with tempfile.TemporaryDirectory() as place:
            write(Path(place, "text"), alphabet, arguments.megabytes, 8 if script == "ASCII" else 1)
            for _ in range(arguments.repeats):
                with (
                    tempfile.TemporaryDirectory() as cache,
                    ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool,
                ):
                    results.append(pool.submit(prepare, f"{place}/text", cache).result())
        encoded, found, drawn, memory = zip(*results, strict=True)
        speeds = [arguments.megabytes / each for each in encoded]
        times = [spread([1e3 * each for each in column]) for column in (found, drawn)]
        rows.append([script, spread(speeds, digits=0), *times, f"{max(memory):.0f}"])
    print(f"{hardware()}\n{arguments.megabytes} MB of each; medians of {arguments.repeats} (range)\n\n{table(rows)}")


if __name__ == "__main__":
    main()

"""How fast a page writes, how large it is and how exact, in Chromium: `python -m benchmarks.page`."""

import re
import shutil
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch
from playwright.sync_api import Browser, expect, sync_playwright

from benchmarks.costs import experiments
from benchmarks.measure import hardware, parser, spread, table
from benchmarks.peers import VOCABULARY
from chargpt.model import BigramConfig, ModelConfig, build_model
from chargpt.page.build import build_page

CHARACTERS = "".join(chr(ord("0") + n) for n in range(VOCABULARY))


def write_untrained(config: ModelConfig, file: Path, kind: str) -> None:
    """A page with an untrained model, which is as fast as a trained one."""
    torch.manual_seed(0)
    weights = {f"net.{name}": value for name, value in build_model(config, VOCABULARY).state_dict().items()}
    settings = {"model": asdict(config), "characters": CHARACTERS}
    checkpoint = file.with_suffix(".ckpt")
    torch.save({"state_dict": weights, "hyper_parameters": settings}, checkpoint)
    file.write_text(build_page(checkpoint, kind), encoding="utf-8")


def measure(browser: Browser, file: Path, length: int) -> tuple[float, float, str]:
    """Let a page write from a prompt of one character.

    Returns:
        Seconds to the first character, characters per second, largest difference of logits from PyTorch's.
    """
    page = browser.new_page()
    started = time.perf_counter()
    page.goto(file.as_uri())
    page.wait_for_selector("#go:not([disabled])", timeout=120_000)
    page.fill("#length", str(length))
    page.click("#go")
    page.wait_for_selector("#text span:nth-child(2)")
    first = time.perf_counter() - started
    expect(page.locator("#status")).to_have_text(re.compile("^Done"), timeout=600_000)
    speed = float(re.search(r"([\d,.]+) characters", page.inner_text("#speed"))[1].replace(",", ""))
    difference = re.search(r"[\d.]+e[+-]\d+|0$", page.inner_text("#proof").rstrip("."))
    page.close()
    return first, speed, difference[0] if difference else "?"


def main() -> None:
    given = parser(__doc__.splitlines()[0])
    given.add_argument("--chromium", default=shutil.which("chromium"), help="the browser's program")
    arguments = given.parse_args()
    names = ["to the first character, s", "characters per second", "past the window (stride)", "difference of logits"]
    rows = [["model", "page in fp16, MB", "int8", *names]]
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=arguments.chromium, args=["--no-sandbox"])
        steps = experiments(half=False)
        models = {"cpu": steps["cpu"].model, "lecture": steps["lecture"].model, "bigram": BigramConfig()}
        for name, config in models.items():
            fp16, int8 = Path(folder, "fp16.html"), Path(folder, "int8.html")
            write_untrained(config, fp16, "fp16")
            write_untrained(config, int8, "int8")
            inside = [measure(browser, fp16, config.block_size - 1) for _ in range(arguments.repeats)]
            beyond = [measure(browser, fp16, 3 * config.block_size)[1] for _ in range(arguments.repeats)]
            firsts, speeds, differences = zip(*inside, strict=True)
            megabytes = [f"{file.stat().st_size / 1e6:.2f}" for file in (fp16, int8)]
            times = [spread(list(firsts)), spread(list(speeds), digits=0), spread(beyond, digits=0)]
            rows.append([name, *megabytes, *times, statistics.mode(differences)])
        version = browser.version
        browser.close()
    print(f"{hardware()}\nChromium {version}; medians of {arguments.repeats} openings each (range)\n")
    print(table(rows))


if __name__ == "__main__":
    main()

"""Timing that several contenders can be compared by, on a machine that others use, too."""

import argparse
import importlib.util
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch


def hardware() -> str:
    """The machine and the versions that figures belong to."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(": ")[1] for line in lines if line.startswith("model name")), name)
    units = [flag for flag in ("amx_bf16", "avx512_bf16", "avx512_f", "avx2") if torch.cpu.get_capabilities().get(flag)]
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{name} ({', '.join(units)}), {torch.get_num_threads()} threads{gpu};"
        f" Python {platform.python_version()}, torch {torch.__version__}"
    )


def matrix_peak(dtype: torch.dtype, device: str = "cpu") -> float:
    """FLOP/s of the best of several products of square matrices."""
    a, b = (torch.randn(2048, 2048, device=device).to(dtype) for _ in range(2))
    return 2 * 2048**3 / min(seconds(lambda: a @ b, device) for _ in range(20))


def seconds(work: Callable[[], object], device: str = "cpu") -> float:
    """How long one call takes, the device's work included."""
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def interleaved(
    contenders: dict[str, Callable[[], object]], repeats: int, device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of each contender in each round. Rounds are interleaved, so that a busy moment of the machine falls on
    all alike; one round before counts for nothing."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for n in range(repeats + 1):
        for name, work in contenders.items():
            spent = seconds(work, device)
            if n > 0:
                taken[name].append(spent)
        print(f"round {n} of {repeats}", file=sys.stderr)
    return taken


def table(rows: list[list[str]]) -> str:
    """Rows of cells, the first the header, as Markdown."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def spread(values: list[float], unit: str = "", digits: int = 2) -> str:
    """Median and range."""
    return f"{statistics.median(values):,.{digits}f}{unit} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def module_from(file: Path, source: str | None = None) -> ModuleType:
    """A file of somebody else's as a module, or instead of its text another."""
    spec = importlib.util.spec_from_file_location(f"peer_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    exec(compile(source or file.read_text(), str(file), "exec"), module.__dict__)
    return module


def parser(description: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--repeats", type=int, default=5, help="rounds (default 5)")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return made

"""Timing of several contenders on a machine that is also used by others."""

import argparse
import contextlib
import ctypes
import importlib.util
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import torch

Key = TypeVar("Key", bound=Hashable)
Work = Callable[[], Callable[[], object]]  # returns the function to time


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


def seconds(work: Callable[[], object], device: str = "cpu") -> float:
    """How long one call takes, the device's work included."""
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronize()
    started = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - started


@dataclass
class Measured:
    """Seconds of each round, and peak memory: the GPU's if there is one, else the whole process's."""

    seconds: list[float] = field(default_factory=list)
    megabytes: float = 0.0


def interleaved(contenders: dict[Key, Work], repeats: int, device: str = "cpu") -> dict[Key, Measured]:
    """Measure contenders in separate processes, in interleaved rounds, so that a busy moment affects all of them.

    Each round has a warm-up call. Afterwards memory is returned to the system, so that many contenders fit.

    Args:
        contenders: by name; each must be picklable.
    """
    measured = {name: Measured() for name in contenders}
    context = multiprocessing.get_context("spawn")
    pools = {name: ProcessPoolExecutor(1, context) for name in contenders}
    try:
        for name, make in contenders.items():
            pools[name].submit(_prepare, make).result()
            print(f"prepared {name}", file=sys.stderr)
        for n in range(repeats):
            for name, pool in pools.items():
                spent, measured[name].megabytes = pool.submit(_measure, device).result()
                measured[name].seconds.append(spent)
            print(f"round {n + 1} of {repeats}", file=sys.stderr)
    finally:
        for pool in pools.values():
            pool.shutdown()
    return measured


def _prepare(make: Work) -> None:
    global _work
    _work = make()


def _measure(device: str) -> tuple[float, float]:
    seconds(_work, device)
    spent = seconds(_work, device)
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
            ctypes.CDLL("libc.so.6").malloc_trim(0)
    return spent, peak_memory(device)


def peak_memory(device: str) -> float:
    """MB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    if Path("/proc/self/status").exists():
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def table(rows: list[list[str]]) -> str:
    """Markdown; the first row is the header."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def spread(values: list[float], unit: str = "", digits: int = 2) -> str:
    """Median and range."""
    return f"{statistics.median(values):,.{digits}f}{unit} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def module_from(file: Path, source: str | None = None) -> ModuleType:
    """Import a file; `source` replaces its text."""
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

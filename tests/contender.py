"""Something to measure, in a module that a process imports quickly."""

import os
from collections.abc import Callable


def note(file: str, name: str, size: int) -> Callable[[], object]:
    """A contender that holds some bytes, and notes its process in each of its calls."""
    held = bytearray(size)

    def work() -> object:
        with open(file, "a") as out:
            out.write(f"{name} {os.getpid()}\n")
        return len(held)

    return work

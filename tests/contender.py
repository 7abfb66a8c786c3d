"""Something to measure, in a module that a process imports quickly."""

import os
from collections.abc import Callable


def note(file: str, name: str, size: int) -> Callable[[], None]:
    """A contender that notes each of its calls, and holds as many bytes."""
    held = bytearray(size)
    with open(file, "a") as out:
        out.write(f"made {name} in {os.getpid()}\n")

    def work():
        with open(file, "a") as out:
            out.write(f"{name} {len(held) > 0}\n")

    return work

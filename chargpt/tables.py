"""Tables of text for a terminal."""

from collections.abc import Sequence

from chargpt.errors import one_line


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under their heads, as wide as they need to be: numbers to the right, the last column to the left."""
    lines = [[one_line(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (
        [*(cell.rjust(width) for cell, width in zip(line[:-1], widths, strict=False)), line[-1]] for line in lines
    )
    return "\n".join("  ".join(line) for line in padded)

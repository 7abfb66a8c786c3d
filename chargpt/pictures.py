"""How pictures label characters, and how a figure becomes a file.

Matplotlib is imported in the functions that draw, as this takes a while, and without `pyplot`, which would keep every
figure and look for a screen.
"""

import io
import warnings
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SYMBOLS = {" ": "␣", "\n": "↵", "\t": "⇥"}


def label(character: str) -> str:
    """A visible character: a symbol for a blank, an escape for other characters that cannot be printed."""
    if character in SYMBOLS:
        return SYMBOLS[character]
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def png(figure: "Figure") -> bytes:
    """A figure as the content of a PNG file."""
    picture = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # of characters that the font lacks
        figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()


def pixels(figure: "Figure") -> np.ndarray:
    """A figure as (height, width, 4) bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(120)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings(action="ignore"):  # of characters that the font lacks
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())

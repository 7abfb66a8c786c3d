"""What pictures have in common: how characters are labelled, how a figure becomes a file, and quick pictures of cells.

Matplotlib is imported where something is drawn, since that takes a while, and without `pyplot`, which would keep every
figure and look for a screen. It takes a quarter of a second for a few panels with labels: a picture that is drawn often
has its letters drawn once, and NumPy colours it.
"""

import io
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SYMBOLS = {" ": "␣", "\n": "↵", "\t": "⇥"}


def label(character: str) -> str:
    """A character as one can see it: a symbol for a blank, an escape for what else cannot be printed."""
    if character in SYMBOLS:
        return SYMBOLS[character]
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def png(figure: "Figure") -> bytes:
    """A figure as the content of a PNG file."""
    picture = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # of characters that its font lacks
        figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()


class Letters(NamedTuple):
    """A text in a picture.

    Attributes:
        x: where its middle is, in pixels from the left.
        y: likewise, from the top.
        text: it stands as it is: $ begins no formula.
        size: of the font, in pixels.
        turned: whether it is read from below.
    """

    x: float
    y: float
    text: str
    size: float
    turned: bool = False


def lettered(width: int, height: int, letters: Iterable[Letters]) -> np.ndarray:
    """Texts in black on white, as (height, width, 3) bytes: red, green and blue."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=((width + 0.5) / 72, (height + 0.5) / 72), dpi=72)  # points are pixels; a half is cut off
    for each in letters:
        turned: dict[str, Any] = {"rotation": 90, "va": "center"} if each.turned else {"va": "center_baseline"}
        place = (each.x / width, 1 - each.y / height)
        figure.text(*place, each.text, fontsize=each.size, ha="center", parse_math=False, **turned)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings(action="ignore"):  # of characters that its font lacks
        canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def coloured(shares: np.ndarray, colours: str, most: float = 1.0) -> np.ndarray:
    """The colours of numbers from 0 to 1, as bytes: the same shape, and three for each.

    Args:
        colours: the name of one of matplotlib's colour maps.
        most: the place in it that 1 has, where what is beyond would be too dark for letters.
    """
    from matplotlib import colormaps

    return colormaps[colours](shares.clip(0, 1) * most, bytes=True)[..., :3]


def enlarged(cells: np.ndarray, width: int, height: int) -> np.ndarray:
    """Cells, (rows, columns, 3), of so many pixels each."""
    return cells.repeat(height, 0).repeat(width, 1)

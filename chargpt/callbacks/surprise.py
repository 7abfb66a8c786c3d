"""What the model did not expect."""

import functools
import math
from collections.abc import Iterator

import numpy as np
from torch import Tensor

from chargpt.callbacks.prompted import AtPrompt
from chargpt.model import Model
from chargpt.pictures import Letters, coloured, enlarged, label, lettered

COLUMNS = 32  # characters per line
WIDTH, HEIGHT, GAP, TITLE, BAR = 16, 22, 8, 16, 12  # pixels: of a character, beside and above them, of the colour bar
COLOURS = ("YlOrRd", 0.7)
NONE = 220  # grey: no surprise is known


class Surprise(AtPrompt):
    """Colours each character of a prompt by how much it surprises the model that has read those before: by the bits of
    -log2 of the probability that it had.

    Args:
        prompt: as `AtPrompt` has it, as is `length`; the last character is only predicted.
    """

    beyond, longest = 1, 400

    def __init__(self, prompt: str | None = None, length: int = 96):
        super().__init__(prompt, length)

    def look(self, net: Model, idx: Tensor, text: str) -> Iterator[tuple[str, np.ndarray]]:
        logits = net(idx[:, :-1]).float()  # (1, T - 1, vocab_size)
        bits = -logits.log_softmax(-1).gather(-1, idx[:, 1:, None]) / math.log(2)
        yield "surprise", draw(bits.flatten().cpu().numpy(), text, logits.shape[-1])


def draw(bits: np.ndarray, text: str, vocab_size: int) -> np.ndarray:
    """The characters in lines, each on its colour, and a colour bar. It ends where guessing would be, in every picture;
    what is beyond has its last colour.

    Args:
        bits: (T - 1,): the first character has none before it.
        text: T characters.
        vocab_size: distinct characters.

    Returns:
        (height, width, 3) bytes.
    """
    most = math.log2(vocab_size)
    columns = min(len(text), COLUMNS)
    rows = -(-len(text) // columns)
    cells = np.full((rows * columns, 3), NONE, np.uint8)
    cells[1 : len(text)] = coloured(np.nan_to_num(bits / most, nan=1.0), *COLOURS)
    picture = _frame(rows, columns, text, most).copy()
    grid = picture[TITLE : TITLE + rows * HEIGHT, : columns * WIDTH]
    grid[:] = np.minimum(grid, enlarged(cells.reshape(rows, columns, 3), WIDTH, HEIGHT))
    return picture


@functools.lru_cache(maxsize=1)  # the same at each validation
def _frame(rows: int, columns: int, text: str, most: float) -> np.ndarray:
    """The characters on white, and the colour bar."""
    labels = [label(character) for character in text]
    letters = [
        Letters((n % columns + 0.5) * WIDTH, TITLE + (n // columns + 0.5) * HEIGHT, each, 13 if len(each) == 1 else 6)
        for n, each in enumerate(labels)
    ]
    side, left = rows * HEIGHT, columns * WIDTH + GAP
    for y, each in ((TITLE + 5, f"{most:.1f}"), (TITLE + side - 5, "0")):
        letters.append(Letters(left + BAR + 12, y, each, 10))
    letters.append(Letters(left + BAR / 2, TITLE / 2, "bits", 10))
    picture = lettered(left + BAR + 26, TITLE + side + GAP, letters)
    shares = np.linspace(1, 0, side)[:, None].repeat(BAR, 1)
    picture[TITLE : TITLE + side, left : left + BAR] = coloured(shares, *COLOURS)
    return picture

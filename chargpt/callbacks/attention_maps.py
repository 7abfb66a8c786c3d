"""What each head looks at."""

import functools
from collections.abc import Iterator

import numpy as np
from torch import Tensor

from chargpt.callbacks.prompted import AtPrompt
from chargpt.model import GPT, Block, Model
from chargpt.pictures import Letters, coloured, enlarged, label, lettered

MOST_LAYERS, MOST_HEADS = 12, 16  # that are drawn, so that no validation takes long
CELL, GAP, TITLE = 9, 6, 14  # pixels: of a character, between two panels, above each


class AttentionMaps(AtPrompt):
    """Draws how much each character of a prompt attends to itself and to those before: an image per layer (of the first
    12), a panel per head (of the first 16). A bigram has neither.

    Args:
        prompt: as `AtPrompt` has it, as is `length`.
    """

    longest = 48

    def __init__(self, prompt: str | None = None, length: int = 24):
        super().__init__(prompt, length)

    def look(self, net: Model, idx: Tensor, text: str) -> Iterator[tuple[str, np.ndarray]]:
        if isinstance(net, GPT):
            for n, weights in enumerate(attention_weights(net, idx)[:MOST_LAYERS], 1):
                yield f"attention/layer_{n}", draw(weights[0, :MOST_HEADS].float().cpu().numpy(), text)


def attention_weights(net: GPT, idx: Tensor) -> list[Tensor]:
    """Those of each layer, (B, n_head, T, T), as a model in eval mode reads ids, (B, T)."""
    weights: list[Tensor] = []
    hooks = []
    for block in net.blocks:
        assert isinstance(block, Block)
        hooks.append(block.sa.register_forward_pre_hook(lambda sa, args: weights.append(sa.weights(args[0]))))
    try:
        net(idx)
    finally:
        for hook in hooks:
            hook.remove()
    return weights


def draw(weights: np.ndarray, text: str) -> np.ndarray:
    """A panel per head: a row for each character that looks, a column for each that it looks at.

    Args:
        weights: (n_head, T, T). Their square roots are drawn, so that small ones are seen, too.
        text: T characters.

    Returns:
        (height, width, 3) bytes.
    """
    heads, T, _ = weights.shape
    frame, corners = _frame(heads, text)
    picture = frame.copy()
    for (left, top), shares in zip(corners, np.sqrt(np.nan_to_num(weights)), strict=True):
        picture[top : top + T * CELL, left : left + T * CELL] = enlarged(coloured(shares, "Blues"), CELL, CELL)
    return picture


@functools.lru_cache(maxsize=1)  # the same for all layers, and at each validation
def _frame(heads: int, text: str) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """What surrounds the panels, and their upper left corners. Only the outer ones have characters at their edges."""
    labels = [label(character) for character in text]
    longest = max(map(len, labels))
    side, edge = len(text) * CELL, CELL + 6 * (longest - 1) + GAP
    rows = max(1, round((heads / 1.5) ** 0.5))
    columns = -(-heads // rows)
    middles = [(n + 0.5) * CELL for n in range(len(text))]
    letters, corners = [], []
    for n in range(heads):
        row, column = divmod(n, columns)
        left, top = edge + column * (side + GAP), TITLE + row * (side + TITLE)
        corners.append((left, top))
        letters.append(Letters(left + side / 2, top - TITLE / 2, f"head {n + 1}" if len(text) > 4 else f"{n + 1}", 10))
        if column == 0:
            letters += [Letters(edge / 2, top + y, each, CELL) for y, each in zip(middles, labels, strict=True)]
        if n + columns >= heads:  # there is none below it
            y, turned = top + side + edge / 2, longest > 1
            letters += [Letters(left + x, y, each, CELL, turned) for x, each in zip(middles, labels, strict=True)]
    width, height = edge + columns * (side + GAP), rows * (side + TITLE) + edge
    return lettered(width, height, letters), corners

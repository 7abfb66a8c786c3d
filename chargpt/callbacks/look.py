"""Pictures of a prompt after each validation: what each head attends to, and how much each character surprises."""

import math
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from chargpt.callbacks.averaging import validated_weights
from chargpt.callbacks.tensorboard import tensorboards
from chargpt.data import CharDataModule
from chargpt.errors import UserError
from chargpt.model import GPT, Block, Model
from chargpt.module import CharLM
from chargpt.pictures import label
from chargpt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_LAYERS, MOST_HEADS = 12, 16  # each picture takes a fifth of a second
COLUMNS = 32  # characters per line in the picture of the surprise
CELL, EDGE = 0.12, 0.35  # inches: of a character in an attention map, around the panels


class Look(Callback):
    """Draws pictures of a prompt for TensorBoard after each validation, with the validated weights.

    Args:
        prompt: characters outside the vocabulary are left out; if too few remain, or it is null, the beginning of the
            validation text stands in.
        length: characters to look at; at most the model's context.

    Attributes:
        beyond: characters after the model's context, which are only predicted.
        longest: the largest `length`, as each character takes room and time.
    """

    beyond, longest = 0, 100

    def __init__(self, prompt: str | None, length: int):
        if not 1 + self.beyond <= length <= self.longest:
            raise UserError(f"length must be at least {1 + self.beyond} and at most {self.longest}; got {length}")
        if not isinstance(prompt, str | None):
            raise UserError(f"prompt must be a text (a number needs quotes) or null; got {prompt!r}")
        self.prompt = prompt
        self.length = length

    def draw(self, net: Model, idx: Tensor, text: str) -> Iterator[tuple[str, "Figure"]]:
        """For subclasses: named figures of a net in eval mode, (1, T) ids and their T characters."""
        raise NotImplementedError

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        loggers = tensorboards(trainer)
        if not loggers or trainer.sanity_checking:
            return
        assert isinstance(module, CharLM)
        tokenizer = module.tokenizer
        ids = self._ids(trainer, tokenizer, module.net.config.block_size + self.beyond)
        idx = torch.tensor([ids], device=module.device)
        text = "".join(tokenizer.decode([i]) for i in ids)  # one character each, also for a part of a character
        # A compiled model would be compiled again for this one length.
        with validated_weights(trainer, module), torch.inference_mode(), torch.compiler.set_stance("force_eager"):
            for name, figure in self.draw(module.net, idx, text):
                picture = pixels(figure)
                for logger in loggers:
                    logger.experiment.add_image(name, picture, trainer.global_step, dataformats="HWC")

    def _ids(self, trainer: Trainer, tokenizer: Tokenizer, room: int) -> list[int]:
        length = min(self.length, room)
        ids = tokenizer.encode(self.prompt or "", skip_unknown=True)[:length]
        if len(ids) <= self.beyond:
            data = trainer.datamodule  # type: ignore[attr-defined]  # the Trainer has it, undeclared
            assert isinstance(data, CharDataModule)
            ids = data.val_ids[:length].tolist()
        return ids


class AttentionMaps(Look):
    """Draws how much each character of a prompt attends to itself and to earlier ones: an image per layer (of the first
    12), a panel per head (of the first 16). A bigram has no attention."""

    longest = 48

    def __init__(self, prompt: str | None = None, length: int = 24):
        super().__init__(prompt, length)

    def draw(self, net: Model, idx: Tensor, text: str) -> Iterator[tuple[str, "Figure"]]:
        if isinstance(net, GPT):
            for n, weights in enumerate(attention_weights(net, idx)[:MOST_LAYERS], 1):
                yield f"attention/layer_{n}", draw_attention(weights[0, :MOST_HEADS].float().cpu().numpy(), text)


class Surprise(Look):
    """Colours each character of a prompt by its surprise given the earlier ones: -log2 of its probability, in bits."""

    beyond, longest = 1, 400

    def __init__(self, prompt: str | None = None, length: int = 96):
        super().__init__(prompt, length)

    def draw(self, net: Model, idx: Tensor, text: str) -> Iterator[tuple[str, "Figure"]]:
        bits, vocab_size = surprise(net, idx)
        yield "surprise", draw_surprise(bits[0].cpu().numpy(), text, math.log2(vocab_size))


def attention_weights(net: GPT, idx: Tensor) -> list[Tensor]:
    """The attention weights of each layer, (B, n_head, T, T), for (B, T) ids and a net in eval mode."""
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


def surprise(net: Model, idx: Tensor) -> tuple[Tensor, int]:
    """The bits of -log2 p of all ids but the first, (B, T) to (B, T - 1), and the number of distinct ids."""
    logits = net(idx[:, :-1]).float()
    bits = -logits.log_softmax(-1).gather(-1, idx[:, 1:, None]) / math.log(2)
    return bits[..., 0], logits.shape[-1]


def draw_attention(weights: np.ndarray, text: str) -> "Figure":
    """A panel per head: a row for each character that attends, a column for each that it attends to.

    Args:
        weights: (n_head, T, T). Their square roots are drawn, to show small ones.
        text: T characters.
    """
    from matplotlib.figure import Figure

    heads, T, _ = weights.shape
    rows = max(1, round((heads / 1.5) ** 0.5))
    columns = -(-heads // rows)
    labels = [label(character) for character in text]
    width, height = columns * (T * CELL + EDGE) + EDGE, rows * (T * CELL + EDGE) + EDGE
    figure = Figure((width, height))
    figure.subplots_adjust(EDGE / width, EDGE / height, 1 - EDGE / width, 1 - EDGE / height)
    for n, panel in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        if n >= heads:
            panel.set_visible(False)
            continue
        panel.imshow(np.sqrt(weights[n]), cmap="Blues", vmin=0, vmax=1)
        panel.set(xticks=[], yticks=[])  # labelled ticks would take twice as long as texts
        panel.set_title(f"head {n + 1}", fontsize=8, pad=3)
        for t, each in enumerate(labels):  # at the outer panels
            if n + columns >= heads:
                panel.text(t, T - 0.3, each, fontsize=7, ha="center", va="top", rotation=90 if len(each) > 1 else 0)
            if n % columns == 0:
                panel.text(-0.8, t, each, fontsize=7, ha="right", va="center")
    return figure


def draw_surprise(bits: np.ndarray, text: str, most: float) -> "Figure":
    """The characters in lines, each on its colour, and a colour bar.

    Args:
        bits: (T - 1,): the first character is not predicted.
        text: T characters.
        most: the end of the colour bar: the bits of a guess.
    """
    from matplotlib.figure import Figure

    columns = min(len(text), COLUMNS)
    rows = -(-len(text) // columns)
    cells = np.full(rows * columns, np.nan)
    cells[1 : len(text)] = bits
    figure = Figure((columns * 0.2 + 1, rows * 0.28 + 0.4), layout="constrained")
    panel = figure.subplots()
    image = panel.imshow(cells.reshape(rows, columns), cmap="YlOrRd", vmin=0, vmax=most, alpha=0.7, aspect="auto")
    for n, each in enumerate(map(label, text)):
        panel.text(n % columns, n // columns, each, ha="center", va="center", fontsize=9 if len(each) == 1 else 5)
    panel.set_axis_off()
    figure.colorbar(image, label="bits")
    return figure


def pixels(figure: "Figure") -> np.ndarray:
    """A figure as (height, width, 3) bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(90)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings(action="ignore"):  # of characters that the font lacks
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]

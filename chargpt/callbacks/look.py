"""After each validation: a text that the model writes, and pictures of a prompt: what heads attend to, and how much
each character surprises."""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure
from torch import Tensor

from chargpt.callbacks.records import tensorboards, verbatim
from chargpt.errors import UserError
from chargpt.files import best_effort
from chargpt.generation import Sampling, generate
from chargpt.history import SAMPLES, Sample, add_sample
from chargpt.model import GPT, Model
from chargpt.tokenizer import visible

MOST_LAYERS, MOST_HEADS = 12, 16  # each picture takes a fifth of a second
COLUMNS = 32  # characters per line in the picture of the surprise
CELL, EDGE = 0.12, 0.35  # inches: of a character in an attention map, around the panels


class TextSamples(Callback):
    """Generates a text after each validation, from the same prompt and seed each time, for TensorBoard and for
    `samples.jsonl` in the run's folder, which the page shows.

    Args:
        prompt: the beginning of the text; characters outside the vocabulary are left out. If none remains, the first
            character of the vocabulary stands in.
        length: characters to generate, or bytes; training waits for them.
    """

    def __init__(self, prompt: str = "\n", length: int = 300):
        self.prompt = str(prompt)  # Hydra reads some texts as numbers
        self.sampling = Sampling(max_new_tokens=length)

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, module: Any) -> None:
        prompt = module.tokenizer.encode(self.prompt, skip_unknown=True) or [0]
        generator = torch.Generator(module.device).manual_seed(0)  # training draws the same numbers as without samples
        ids = list(generate(module.net, torch.tensor([prompt], device=module.device), self.sampling, generator))
        text = module.tokenizer.decode([*prompt, *torch.cat(ids).tolist()])
        with best_effort(SAMPLES):
            add_sample(Path(trainer.default_root_dir), Sample(trainer.global_step, text))
        for logger in tensorboards(trainer):
            logger.experiment.add_text("sample", verbatim(text), trainer.global_step)


class Look(Callback):
    """Draws pictures of a prompt for TensorBoard after each validation.

    Args:
        prompt: characters outside the vocabulary are left out; if fewer than two remain, or it is null, the beginning
            of the validation text stands in.
        length: characters to look at; at most the model's context and the character after it.
    """

    def __init__(self, prompt: str | None = None, length: int = 24):
        if length < 2:
            raise UserError(f"length must be at least 2; got {length}")
        self.prompt = "" if prompt is None else str(prompt)  # Hydra reads some texts as numbers
        self.length = length

    def draw(self, net: Model, idx: Tensor, text: str) -> Iterator[tuple[str, Figure]]:
        """For subclasses: named figures of a net in eval mode, (1, T) ids and their T characters."""
        raise NotImplementedError

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, module: Any) -> None:
        loggers = tensorboards(trainer)
        if not loggers:
            return
        length = min(self.length, module.net.config.block_size + 1)
        ids = module.tokenizer.encode(self.prompt, skip_unknown=True)[:length]
        if len(ids) < 2:
            ids = trainer.datamodule.val_ids[:length].tolist()  # type: ignore[attr-defined]
        idx = torch.tensor([ids], device=module.device)
        text = "".join(module.tokenizer.decode([i]) for i in ids)  # one character each, also for a part of a character
        # A compiled model would be compiled again for this one length.
        with torch.inference_mode(), torch.compiler.set_stance("force_eager"):
            for name, figure in self.draw(module.net, idx, text):
                for logger in loggers:
                    with warnings.catch_warnings(action="ignore"):  # of characters that the font lacks
                        logger.experiment.add_figure(name, figure, trainer.global_step, close=False)


class AttentionMaps(Look):
    """Draws how much each character of a prompt attends to itself and to earlier ones: an image per layer (of the first
    12), a panel per head (of the first 16). A bigram has no attention."""

    def draw(self, net: Model, idx: Tensor, text: str) -> Iterator[tuple[str, Figure]]:
        if isinstance(net, GPT):
            for n, weights in enumerate(attention_weights(net, idx[:, : net.config.block_size])[:MOST_LAYERS], 1):
                yield f"attention/layer_{n}", draw_attention(weights[0, :MOST_HEADS].float().cpu().numpy(), text)


class Surprise(Look):
    """Colours each character of a prompt by its surprise given the earlier ones: -log2 of its probability, in bits."""

    def draw(self, net: Model, idx: Tensor, text: str) -> Iterator[tuple[str, Figure]]:
        logits = net(idx[:, :-1]).float()
        bits = -logits.log_softmax(-1).gather(-1, idx[:, 1:, None])[0, :, 0] / math.log(2)
        yield "surprise", draw_surprise(bits.cpu().numpy(), text, math.log2(logits.shape[-1]))


def attention_weights(net: GPT, idx: Tensor) -> list[Tensor]:
    """The attention weights of each layer, (B, n_head, T, T), for (B, T) ids and a net in eval mode."""
    weights: list[Tensor] = []
    blocks: Any = net.blocks
    hooks = [
        block.sa.register_forward_pre_hook(lambda sa, args: weights.append(sa.weights(args[0]))) for block in blocks
    ]
    net(idx)
    for hook in hooks:
        hook.remove()
    return weights


def draw_attention(weights: np.ndarray, text: str) -> Figure:
    """A panel per head: a row for each character that attends, a column for each that it attends to.

    Args:
        weights: (n_head, T, T). Their square roots are drawn, to show small ones.
        text: T characters.
    """
    heads, T, _ = weights.shape
    rows = max(1, round((heads / 1.5) ** 0.5))
    columns = -(-heads // rows)
    width, height = columns * (T * CELL + EDGE) + EDGE, rows * (T * CELL + EDGE) + EDGE
    figure = Figure((width, height), dpi=120)
    figure.subplots_adjust(EDGE / width, EDGE / height, 1 - EDGE / width, 1 - EDGE / height)
    for n, head in enumerate(weights):
        panel = figure.add_subplot(rows, columns, n + 1)
        panel.imshow(np.sqrt(head), cmap="Blues", vmin=0, vmax=1)
        panel.set(xticks=[], yticks=[])  # labelled ticks would take twice as long as texts
        panel.set_title(f"head {n + 1}", fontsize=8, pad=3)
        for t, each in enumerate(map(visible, text[:T])):  # at the outer panels
            if n + columns >= heads:
                panel.text(t, T - 0.3, each, fontsize=7, ha="center", va="top", rotation=90 if len(each) > 1 else 0)
            if n % columns == 0:
                panel.text(-0.8, t, each, fontsize=7, ha="right", va="center")
    return figure


def draw_surprise(bits: np.ndarray, text: str, most: float) -> Figure:
    """The characters in lines, each on its colour, and a colour bar.

    Args:
        bits: (T - 1,): the first character is not predicted.
        text: T characters.
        most: the end of the colour bar: the bits of a guess.
    """
    columns = min(len(text), COLUMNS)
    rows = -(-len(text) // columns)
    cells = np.full(rows * columns, np.nan)
    cells[1 : len(text)] = bits
    figure = Figure((columns * 0.2 + 1, rows * 0.28 + 0.4), layout="constrained", dpi=120)
    panel = figure.subplots()
    image = panel.imshow(cells.reshape(rows, columns), cmap="YlOrRd", vmin=0, vmax=most, alpha=0.7, aspect="auto")
    for n, each in enumerate(map(visible, text)):
        panel.text(n % columns, n // columns, each, ha="center", va="center", fontsize=9 if len(each) == 1 else 5)
    panel.set_axis_off()
    figure.colorbar(image, label="bits")
    return figure

"""The models to compare with: a plain one, and nanoGPT's and the lecture's if you have their code."""

import argparse
import ast
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import module_from
from chargpt.model import GPTConfig

LECTURE, VOCABULARY = GPTConfig(), 65
SIZES = {"vocab_size": VOCABULARY} | {  # the options that all of them have
    name: getattr(LECTURE, name) for name in ("block_size", "n_layer", "n_head", "n_embd", "dropout")
}


class PlainHead(nn.Module):
    """One head of causal self-attention, by the lecture's formula."""

    def __init__(self, n_embd: int, head_size: int, block_size: int, dropout: float):
        super().__init__()
        self.key = nn.Linear(n_embd, head_size, bias=False)
        self.query = nn.Linear(n_embd, head_size, bias=False)
        self.value = nn.Linear(n_embd, head_size, bias=False)
        self.register_buffer("tril", torch.ones(block_size, block_size).tril())
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        T = x.shape[1]
        scores = self.query(x) @ self.key(x).mT / self.key.out_features**0.5  # (B, T, T)
        weights = scores.masked_fill(self.tril[:T, :T] == 0, float("-inf")).softmax(-1)
        return self.dropout(weights) @ self.value(x)  # (B, T, head_size)


class PlainAttention(nn.Module):
    """A list of heads."""

    def __init__(self, n_embd: int, n_head: int, block_size: int, dropout: float):
        super().__init__()
        self.heads = nn.ModuleList(PlainHead(n_embd, n_embd // n_head, block_size, dropout) for _ in range(n_head))
        self.proj = nn.Linear(n_embd, n_embd)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.proj(torch.cat([head(x) for head in self.heads], -1)))


class PlainFeedForward(nn.Module):
    def __init__(self, n_embd: int, dropout: float):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(n_embd, 4 * n_embd), nn.ReLU(), nn.Linear(4 * n_embd, n_embd), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class PlainBlock(nn.Module):
    def __init__(self, n_embd: int, n_head: int, block_size: int, dropout: float):
        super().__init__()
        self.sa = PlainAttention(n_embd, n_head, block_size, dropout)
        self.ffwd = PlainFeedForward(n_embd, dropout)
        self.ln1, self.ln2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.sa(self.ln1(x))
        return x + self.ffwd(self.ln2(x))


class PlainGPT(nn.Module):
    """The lecture's model with its names, head by head, with PyTorch's dropout; tests compare `GPT` with it."""

    def __init__(self, vocab_size: int, block_size: int, n_layer: int, n_head: int, n_embd: int, dropout: float):
        super().__init__()
        self.block_size = block_size
        self.token_embedding_table = nn.Embedding(vocab_size, n_embd)
        self.position_embedding_table = nn.Embedding(block_size, n_embd)
        self.blocks = nn.Sequential(*(PlainBlock(n_embd, n_head, block_size, dropout) for _ in range(n_layer)))
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, vocab_size)

    def forward(self, idx: Tensor) -> Tensor:
        positions = torch.arange(idx.shape[1], device=idx.device)
        x = self.token_embedding_table(idx) + self.position_embedding_table(positions)
        return self.lm_head(self.ln_f(self.blocks(x)))


class WithLoss(nn.Module):
    """Make a model return (logits, loss), as nanoGPT's and the lecture's do."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        logits = self.model(idx)
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    @torch.inference_mode()
    def generate(self, idx: Tensor, max_new_tokens: int) -> Tensor:
        for _ in range(max_new_tokens):
            logits = self.model(idx[:, -self.model.block_size :])[:, -1]
            idx = torch.cat((idx, torch.multinomial(logits.softmax(-1), 1)), 1)
        return idx


def add_peers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nanogpt", type=Path, metavar="DIR", help="a checkout of nanoGPT")
    parser.add_argument("--lecture", type=Path, metavar="FILE", help="the lecture's gpt.py")


def peers(arguments: argparse.Namespace) -> list[str]:
    others = {"lecture": arguments.lecture, "nanoGPT": arguments.nanogpt}
    return ["plain", *(name for name, given in others.items() if given)]


def peer(name: str, arguments: argparse.Namespace) -> nn.Module:
    """A model with the lecture's sizes."""
    torch.manual_seed(0)
    if name == "plain":
        model = WithLoss(PlainGPT(**SIZES))
    elif name == "lecture":
        model = lecture(arguments.lecture, arguments.device)
    else:
        nano = module_from(arguments.nanogpt / "model.py")
        model = nano.GPT(nano.GPTConfig(**SIZES, bias=False))
    return model.to(arguments.device)


def lecture(file: Path, device: str) -> nn.Module:
    """The lecture's model from its script, of which only imports, constants and classes are run, not the training."""
    tree = ast.parse(file.read_text())
    kept = [
        node
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom | ast.ClassDef)
        or (isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant))
    ]
    source = f"vocab_size, device = {VOCABULARY}, {device!r}\n{ast.unparse(ast.Module(kept, []))}"
    return module_from(file, source).GPTLanguageModel()

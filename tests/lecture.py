"""The lecture's formula, written out head by head, to hold our model against.

Parameters have the lecture's names, so a state dict of this one is a state dict of the lecture's.
"""

import torch
from torch import nn


class Head(nn.Module):
    def __init__(self, n_embd, head_size, block_size):
        super().__init__()
        self.key = nn.Linear(n_embd, head_size, bias=False)
        self.query = nn.Linear(n_embd, head_size, bias=False)
        self.value = nn.Linear(n_embd, head_size, bias=False)
        self.register_buffer("tril", torch.tril(torch.ones(block_size, block_size)))

    def forward(self, x):
        rows = []
        for t in range(x.shape[1]):  # one query at a time, over the characters up to it
            query, past = self.query(x[:, t]), x[:, : t + 1]
            scores = torch.einsum("bc,bsc->bs", query, self.key(past)) / query.shape[-1] ** 0.5
            rows.append(torch.einsum("bs,bsc->bc", scores.softmax(-1), self.value(past)))
        return torch.stack(rows, 1)


class Attention(nn.Module):
    def __init__(self, n_embd, n_head, block_size):
        super().__init__()
        self.heads = nn.ModuleList(Head(n_embd, n_embd // n_head, block_size) for _ in range(n_head))
        self.proj = nn.Linear(n_embd, n_embd)

    def forward(self, x):
        return self.proj(torch.cat([head(x) for head in self.heads], -1))


class Thinking(nn.Module):
    def __init__(self, n_embd):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(n_embd, 4 * n_embd), nn.ReLU(), nn.Linear(4 * n_embd, n_embd))


class Layer(nn.Module):
    def __init__(self, n_embd, n_head, block_size):
        super().__init__()
        self.sa, self.ffwd = Attention(n_embd, n_head, block_size), Thinking(n_embd)
        self.ln1, self.ln2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)


class LectureGPT(nn.Module):
    """Without dropout: in eval mode the lecture's model is this."""

    def __init__(self, vocab_size, block_size, n_layer, n_head, n_embd):
        super().__init__()
        self.token_embedding_table = nn.Embedding(vocab_size, n_embd)
        self.position_embedding_table = nn.Embedding(block_size, n_embd)
        self.blocks = nn.Sequential(*(Layer(n_embd, n_head, block_size) for _ in range(n_layer)))
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, vocab_size)

    def forward(self, idx):
        x = self.token_embedding_table(idx) + self.position_embedding_table(torch.arange(idx.shape[1]))
        for block in self.blocks:
            x = x + block.sa(block.ln1(x))
            hidden = block.ffwd.net[0](block.ln2(x))
            x = x + block.ffwd.net[2](hidden * (hidden > 0))
        return self.lm_head(self.ln_f(x))

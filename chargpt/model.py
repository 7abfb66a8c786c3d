"""The lecture's two models: the Transformer and the bigram table.

From "Let's build GPT: from scratch, in code, spelled out" (Karpathy, 2023), with its names for the parts. Shapes in
comments: B sequences a batch, T characters of context, C = n_embd channels.
"""

import torch
from torch import Tensor, nn

from chargpt.attention import KVCache, cached_attention, causal_attention
from chargpt.dropout import Dropout
from chargpt.errors import UserError
from chargpt.linear import Linear


class MultiHeadAttention(nn.Module):
    """`n_head` heads of causal self-attention side by side, and a projection of what they found.

    The lecture keeps a list of heads, each with its own key, query and value matrix; here one matrix holds them all.
    A state dict with the lecture's keys is fused as it is loaded.
    """

    def __init__(self, n_embd: int, n_head: int, dropout: float):
        super().__init__()
        self.n_head = n_head
        self.qkv = Linear(n_embd, 3 * n_embd, bias=False)
        self.proj = Linear(n_embd, n_embd)
        self.dropout = Dropout(dropout)
        self.register_load_state_dict_pre_hook(self._fuse_heads)

    def forward(self, x: Tensor, layer: int, cache: KVCache | None = None, last: bool = False) -> Tensor:
        """(B, T, C) to the same, or with `last` to (B, 1, C): what the last character found."""
        B, T, C = x.shape
        qkv = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)  # (3, B, n_head, T, hs)
        if cache is None and not last:
            out = causal_attention(qkv, self.dropout.p if self.training else 0.0)  # (B, n_head, T, hs)
        else:
            q = qkv[0, :, :, -1:] if last else qkv[0]
            k, v = qkv[1:] if cache is None else cache.extend(layer, qkv[1:])
            out = cached_attention(q, k, v, cache and cache.mask)  # (B, n_head, T or 1, hs)
        return self.dropout(self.proj(out.transpose(1, 2).flatten(2)))  # (B, T or 1, C)

    @staticmethod
    def _fuse_heads(module: "MultiHeadAttention", state_dict: dict[str, Tensor], prefix: str, *_) -> None:
        """Turn the lecture's `heads.N.{query,key,value}.weight` into `qkv.weight`; drop its `tril` buffers."""
        names = [f"{prefix}heads.{n}.{part}.weight" for part in ("query", "key", "value") for n in range(module.n_head)]
        if all(name in state_dict for name in names):
            state_dict[f"{prefix}qkv.weight"] = torch.cat([state_dict.pop(name) for name in names])
            for n in range(module.n_head):
                state_dict.pop(f"{prefix}heads.{n}.tril", None)


class FeedForward(nn.Module):
    """Each position thinks about what attention brought it."""

    def __init__(self, n_embd: int, dropout: float):
        super().__init__()
        self.net = nn.Sequential(
            Linear(n_embd, 4 * n_embd),
            nn.ReLU(),
            Linear(4 * n_embd, n_embd),
            Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        up, _, down, dropout = self.net  # the ReLU goes with what stands before it
        return dropout(down(up(x, relu=True)))  # (B, T, C)


class Block(nn.Module):
    """A Transformer block: communication, then computation, each normalised first and added to what was there."""

    def __init__(self, n_embd: int, n_head: int, dropout: float):
        super().__init__()
        self.sa = MultiHeadAttention(n_embd, n_head, dropout)
        self.ffwd = FeedForward(n_embd, dropout)
        self.ln1 = nn.LayerNorm(n_embd)
        self.ln2 = nn.LayerNorm(n_embd)

    def forward(self, x: Tensor, layer: int, cache: KVCache | None = None, last: bool = False) -> Tensor:
        """(B, T, C) to the same, or with `last` to the last character's (B, 1, C)."""
        found = self.sa(self.ln1(x), layer, cache, last)
        x = (x[:, -1:] if last else x) + found
        return x + self.ffwd(self.ln2(x))


class GPT(nn.Module):
    """The lecture's decoder-only Transformer over characters.

    Args:
        vocab_size: distinct characters.
        block_size: the longest context, in characters.
        n_layer: blocks.
        n_head: attention heads a block; they share the channels.
        n_embd: channels (C).
        dropout: probability of dropping an attention weight, or a channel at the end of either half of a block.

    Raises:
        UserError: a size is below 1, n_embd is not divisible by n_head, or dropout is outside [0, 1).
    """

    def __init__(self, *, vocab_size: int, block_size: int, n_layer: int, n_head: int, n_embd: int, dropout: float):
        super().__init__()
        _check_sizes(vocab_size=vocab_size, block_size=block_size, n_layer=n_layer, n_head=n_head, n_embd=n_embd)
        if n_embd % n_head:
            raise UserError(f"model.n_embd must be divisible by model.n_head; got {n_embd} and {n_head}")
        if not 0 <= dropout < 1:
            raise UserError(f"model.dropout must be at least 0 and below 1; got {dropout}")
        self.block_size = block_size
        self.n_head = n_head
        self.token_embedding_table = nn.Embedding(vocab_size, n_embd)
        self.position_embedding_table = nn.Embedding(block_size, n_embd)
        self.blocks = nn.ModuleList(Block(n_embd, n_head, dropout) for _ in range(n_layer))
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = Linear(n_embd, vocab_size)
        self.apply(self._init_weights)

    @staticmethod
    def _init_weights(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def new_cache(self, batch_size: int) -> KVCache:
        """An empty cache for `batch_size` sequences, to be passed to `forward`."""
        weight = self.lm_head.weight
        shape = (len(self.blocks), batch_size, self.n_head, self.block_size, weight.shape[1] // self.n_head)
        return KVCache(shape, weight.device, weight.dtype)

    def forward(self, idx: Tensor, cache: KVCache | None = None, last: bool = False) -> Tensor:
        """Logits of the character after each one of `idx`.

        Args:
            idx: (B, T) ids.
            cache: what `new_cache` gave; then `idx` continues the characters read with that cache before.
            last: give those after the last one only; for use without dropout. Saves most of the last block.

        Returns:
            (B, T, vocab_size), or (B, 1, vocab_size).

        Raises:
            UserError: the context would be longer than block_size.
        """
        T = idx.shape[1]
        end = T if cache is None else cache.length + T
        if end > self.block_size:
            raise UserError(f"a context of {end} characters is longer than block_size={self.block_size}")
        positions = slice(T) if cache is None else cache.positions(T)
        x = self.token_embedding_table(idx) + self.position_embedding_table.weight[positions]  # (B, T, C) + (T, C)
        for layer, block in enumerate(self.blocks):
            at_end = layer == len(self.blocks) - 1
            x = block(x, layer, cache, last and at_end)  # (B, T, C), at the end (B, 1, C) with `last`
        if cache is not None:
            cache.advance(T)
        return self.lm_head(self.ln_f(x))


class Bigram(nn.Module):
    """The lecture's first model: a table that gives the next character's logits from the present one alone.

    Args:
        vocab_size: distinct characters.
        block_size: how many characters a batch's rows have; the model itself looks at one.
    """

    def __init__(self, *, vocab_size: int, block_size: int):
        super().__init__()
        _check_sizes(vocab_size=vocab_size, block_size=block_size)
        self.block_size = block_size
        self.token_embedding_table = nn.Embedding(vocab_size, vocab_size)

    def new_cache(self, batch_size: int) -> None:
        """Nothing: the table needs no memory of earlier characters."""

    def forward(self, idx: Tensor, cache: None = None, last: bool = False) -> Tensor:
        """Logits of the character after each one of `idx`, or the last: (B, T) ids to (B, T or 1, vocab_size)."""
        return self.token_embedding_table(idx[:, -1:] if last else idx)


MODELS: dict[str, type[GPT] | type[Bigram]] = {"gpt": GPT, "bigram": Bigram}


def build_model(config: dict, vocab_size: int) -> GPT | Bigram:
    """The model that a plain dict describes: its `name` in `MODELS`, and its constructor's arguments.

    Raises:
        UserError: there is no such model, or the arguments are not its own.
    """
    arguments = dict(config)
    name = arguments.pop("name", None)
    if name not in MODELS:
        raise UserError(f"model.name must be one of {', '.join(MODELS)}; got {name!r}")
    try:
        return MODELS[name](vocab_size=vocab_size, **arguments)
    except TypeError as error:
        raise UserError(f"these are not the arguments of the model {name}: {arguments} ({error})") from error


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"model.{name} must be at least 1; got {size}")

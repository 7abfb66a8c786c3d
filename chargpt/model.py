"""The lecture's two models: the Transformer and the bigram table.

From "Let's build GPT: from scratch, in code, spelled out" (Karpathy, 2023), with its names for the parts. Shapes in
comments: B sequences per batch, T characters of context, C = n_embd channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chargpt.attention import KVCache, causal_attention, rotary_turns, rotate
from chargpt.errors import UserError
from chargpt.kernels.layers import Dropout, Linear
from chargpt.settings import require, require_at_least

POSITIONS = ("learned", "rotary")


@dataclass
class GPTConfig:
    """The sizes of a `GPT`; the defaults are the lecture's.

    Attributes:
        block_size: the longest context, in characters.
        n_head: attention heads per block; they share the channels.
        n_embd: channels (C).
        dropout: probability of dropping an attention weight, or a channel at the end of either half of a block.
        positions: an embedding for each position (`learned`), or queries and keys that turn with their position
            (`rotary`, see `chargpt.attention.rotate`).
        token_shift: whether both halves of a block replace half of a character's channels by those of the previous
            character (Peng et al. 2023): pairs of characters are then known without learning to look back.
        zero_init: whether the last matrix of either half begins at zero, so that a block at first changes nothing.
    """

    name: str = "gpt"
    block_size: int = 256
    n_layer: int = 6
    n_head: int = 6
    n_embd: int = 384
    dropout: float = 0.2
    positions: str = "learned"
    token_shift: bool = False
    zero_init: bool = False

    def __post_init__(self) -> None:
        require_at_least(1, self, "model", "block_size", "n_layer", "n_head", "n_embd")
        require(0 <= self.dropout < 1, "model.dropout", "at least 0 and below 1", self.dropout)
        require(self.positions in POSITIONS, "model.positions", f"one of {', '.join(POSITIONS)}", self.positions)
        divisor, name = self.n_head, "model.n_head"
        if self.positions == "rotary":  # it turns pairs of channels
            divisor, name = 2 * divisor, "twice model.n_head with model.positions=rotary"
        require(self.n_embd % divisor == 0, "model.n_embd", f"divisible by {name}, {divisor}", self.n_embd)

    @property
    def shifted(self) -> int:
        """How many channels come from the previous character."""
        return self.n_embd // 2 if self.token_shift else 0


@dataclass
class BigramConfig:
    """The size of a `Bigram`: `block_size` characters in each row of a batch; the model itself looks at one."""

    name: str = "bigram"
    block_size: int = 256

    def __post_init__(self) -> None:
        require_at_least(1, self, "model", "block_size")


class MultiHeadAttention(nn.Module):
    """`n_head` heads of causal self-attention side by side, and a projection of their outputs.

    The lecture keeps a list of heads, each with its own key, query and value matrix; here one matrix holds them all.
    A state dict with the lecture's keys is fused when it is loaded.
    """

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.layer, self.n_head, self.block_size = layer, config.n_head, config.block_size
        self.rotary = config.positions == "rotary"
        self.qkv = Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.proj = Linear(config.n_embd, config.n_embd)
        self.dropout = Dropout(config.dropout)
        self.register_load_state_dict_pre_hook(self._fuse_heads)

    def forward(self, x: Tensor, cache: KVCache | None = None, last: int = 0) -> Tensor:
        """(B, T, C) to the same, or to (B, last, C); see `Block`."""
        qkv = self._split_heads(x, 0 if cache is None else cache.length)  # (3, B, n_head, T, hs)
        if cache is None:
            out = causal_attention(qkv, self.dropout.p if self.training else 0.0)  # (B, n_head, T, hs)
        else:
            out = cache.attend(self.layer, qkv, last)
        return self.dropout(self.proj(out.transpose(1, 2).flatten(2)))  # (B, T, C)

    def weights(self, x: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(head_size)) of x, (B, T, C): how much each character attends to each, for pictures.

        Returns:
            (B, n_head, T, T).
        """
        q, k, _ = self._split_heads(x, 0)  # (B, n_head, T, hs) each
        T, head_size = q.shape[-2:]
        scores = q @ k.transpose(-2, -1) * head_size**-0.5  # (B, n_head, T, T)
        future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
        return scores.masked_fill(future, float("-inf")).softmax(-1)

    def _split_heads(self, x: Tensor, start: int) -> Tensor:
        """Queries, keys and values of x, (B, T, C), whose first position is `start`: (3, B, n_head, T, hs)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.n_head, -1))  # (B, T, 3, n_head, hs)
        if self.rotary:
            turns = rotary_turns(self.block_size, qkv.shape[-1], x.device)
            qkv = rotate(qkv, turns[start : start + x.shape[1]])
        return qkv.permute(2, 0, 3, 1, 4)

    @staticmethod
    def _fuse_heads(module: "MultiHeadAttention", state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
        """Turn the lecture's `heads.N.{query,key,value}.weight` into `qkv.weight`; drop its `tril` buffers."""
        heads = [f"{prefix}heads.{n}" for n in range(module.n_head)]
        names = [f"{head}.{part}.weight" for part in ("query", "key", "value") for head in heads]
        if all(name in state_dict for name in names):
            state_dict[f"{prefix}qkv.weight"] = torch.cat([state_dict.pop(name) for name in names])
            for head in heads:
                state_dict.pop(f"{head}.tril", None)


class FeedForward(nn.Module):
    """A two-layer perceptron on each position: it thinks about what attention brought."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.net = nn.Sequential(
            Linear(config.n_embd, 4 * config.n_embd),
            nn.ReLU(),
            Linear(4 * config.n_embd, config.n_embd),
            Dropout(config.dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)  # (B, T, C)


class Block(nn.Module):
    """A Transformer block: communication, then computation, each normalised first and added to its input."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.sa = MultiHeadAttention(config, layer)
        self.ffwd = FeedForward(config)
        self.ln1 = nn.LayerNorm(config.n_embd)
        self.ln2 = nn.LayerNorm(config.n_embd)
        self.layer, self.shifted = layer, config.shifted

    def forward(self, x: Tensor, cache: KVCache | None = None, last: int = 0) -> Tensor:
        """(B, T, C) to the same.

        Args:
            cache: of the characters before these, if any; it then holds these, too.
            last: with a cache, of how many characters at the end the output is needed; 0 is all.
        """
        x = x[:, -last:] + self.sa(self._shift(self.ln1(x), cache, 0), cache, last)
        return x + self.ffwd(self._shift(self.ln2(x), cache, 1))

    def _shift(self, x: Tensor, cache: KVCache | None, half: int) -> Tensor:
        """Give each character the first channels of the previous one; the first of a text gets zeros."""
        if not self.shifted:
            return x
        own = x[:, :, : self.shifted]
        if cache is None:
            before = F.pad(own[:, :-1], (0, 0, 1, 0))
        else:
            before = torch.cat([cache.previous[self.layer, half], own[:, :-1]], 1)
            cache.previous[self.layer, half] = own[:, -1:]
        return torch.cat([before, x[:, :, self.shifted :]], -1)


class GPT(nn.Module):
    """The lecture's decoder-only Transformer over a vocabulary of `vocab_size` characters."""

    def __init__(self, config: GPTConfig, vocab_size: int):
        super().__init__()
        self.config = config
        self.token_embedding_table = nn.Embedding(vocab_size, config.n_embd)
        if config.positions == "learned":
            self.position_embedding_table = nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = Linear(config.n_embd, vocab_size)
        self.apply(self._init_weights)
        if config.zero_init:
            for name, weight in self.named_parameters():
                if name.endswith(("sa.proj.weight", "ffwd.net.2.weight")):
                    nn.init.zeros_(weight)

    @staticmethod
    def _init_weights(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, idx: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits of the character after each one: ids (B, T) to (B, T, vocab_size).

        With a cache, in eval mode and without gradients, `idx` continues the characters read before, and the result is
        the logits after its last character alone: (B, 1, vocab_size).
        """
        start, last = 0, 0
        if cache is not None:
            # Of the last block only the last output is needed, and with token_shift the one before it.
            start, last = cache.length, 2 if self.config.token_shift else 1
        end = start + idx.shape[1]
        if end > self.config.block_size:
            raise UserError(f"a context of {end} characters is longer than block_size={self.config.block_size}")
        x = self.token_embedding_table(idx)  # (B, T, C)
        if self.config.positions == "learned":
            x = x + self.position_embedding_table(torch.arange(start, end, device=idx.device))  # (T, C)
        for n, block in enumerate(self.blocks, 1):
            x = block(x, cache, last if n == len(self.blocks) else 0)  # (B, T, C)
        if cache is not None:
            cache.length, x = end, x[:, -1:]
        return self.lm_head(self.ln_f(x))

    def new_cache(self, batch_size: int, length: int | None = None) -> KVCache:
        """An empty cache with room for `length` characters, by default block_size."""
        config = self.config
        head_size, length = config.n_embd // config.n_head, length or config.block_size
        shape = (config.n_layer, batch_size, config.n_head, length, head_size)
        return KVCache(shape, config.shifted, like=self.lm_head.weight)


class Bigram(nn.Module):
    """The lecture's first model: a table that gives the next character's logits from the present one alone."""

    def __init__(self, config: BigramConfig, vocab_size: int):
        super().__init__()
        self.config = config
        self.token_embedding_table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, idx: Tensor, cache: KVCache | None = None) -> Tensor:
        """As `GPT.forward`: ids (B, T) to (B, T, vocab_size), with a cache to (B, 1, vocab_size)."""
        return self.token_embedding_table(idx if cache is None else idx[:, -1:])

    def new_cache(self, batch_size: int, length: int | None = None) -> KVCache:
        """A cache without layers: the table needs no memory of earlier characters."""
        return KVCache((0, batch_size, 1, 1, 1), 0, like=self.token_embedding_table.weight)


ModelConfig = GPTConfig | BigramConfig
Model = GPT | Bigram
MODEL_CONFIGS: dict[str, type[ModelConfig]] = {"gpt": GPTConfig, "bigram": BigramConfig}


def build_model(config: ModelConfig, vocab_size: int) -> Model:
    return GPT(config, vocab_size) if isinstance(config, GPTConfig) else Bigram(config, vocab_size)

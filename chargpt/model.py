"""The lecture's two models: the Transformer and the bigram table.

From "Let's build GPT: from scratch, in code, spelled out" (Karpathy, 2023), with its names for the parts. Shapes in
comments: B sequences per batch, T characters of context, C = n_embd channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chargpt.attention import KVCache, LayerCache, causal_attention, rotary_turns, rotate
from chargpt.errors import UserError
from chargpt.kernels.dropout import Dropout
from chargpt.kernels.linear import Linear, linear
from chargpt.settings import LARGEST, check_ranges

MOST_LAYERS = 1_000
POSITIONS = ("learned", "rotary")


@dataclass
class GPTConfig:
    """The sizes of a `GPT`; the defaults are the lecture's.

    Attributes:
        block_size: the longest context, in characters.
        n_layer: blocks.
        n_head: attention heads per block; they share the channels.
        n_embd: channels (C).
        dropout: probability of dropping an attention weight, or a channel at the end of either half of a block.
        positions: how a character's place is known: by an embedding of each (`learned`), or by turning queries and
            keys (`rotary`, see `chargpt.attention.rotate`).
        token_shift: whether both halves of a block see half of the channels of the character before in place of the
            character's own (Peng et al. 2023): they know pairs of characters without having to learn to look back.
        zero_init: whether the last matrix of either half begins at zero, so that a block at first changes nothing.

    Raises:
        UserError: a size is below 1 or beyond any machine, n_embd is not divisible by n_head, dropout is outside
            [0, 1), or `positions` is neither, or rotary where the channels of a head are odd in number.
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
        size = (1, LARGEST)
        check_ranges("model", self, block_size=size, n_layer=(1, MOST_LAYERS), n_head=size, n_embd=size)
        if self.n_embd % self.n_head:
            raise UserError(f"model.n_embd must be divisible by model.n_head; got {self.n_embd} and {self.n_head}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"model.dropout must be at least 0 and below 1; got {self.dropout}")
        if self.positions not in POSITIONS:
            raise UserError(f"model.positions must be one of {', '.join(POSITIONS)}; got {self.positions!r}")
        if self.positions == "rotary" and (self.n_embd // self.n_head) % 2:
            raise UserError(
                "model.positions=rotary turns pairs of channels: model.n_embd must be divisible by twice model.n_head;"
                f" got {self.n_embd} and {self.n_head}"
            )

    @property
    def shifted(self) -> int:
        """How many channels come from the character before."""
        return self.n_embd // 2 if self.token_shift else 0


@dataclass
class BigramConfig:
    """The size of a `Bigram`.

    Attributes:
        block_size: how many characters a batch's rows have; the model itself looks at one.

    Raises:
        UserError: it is below 1, or beyond any machine.
    """

    name: str = "bigram"
    block_size: int = 256

    def __post_init__(self) -> None:
        check_ranges("model", self, block_size=(1, LARGEST))


class MultiHeadAttention(nn.Module):
    """`n_head` heads of causal self-attention side by side, and a projection of what they found.

    The lecture keeps a list of heads, each with its own key, query and value matrix; here one matrix holds them all.
    A state dict with the lecture's keys is fused as it is loaded.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.n_head = config.n_head
        self.rotary = config.positions == "rotary"
        self.qkv = Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.proj = Linear(config.n_embd, config.n_embd)
        self.dropout = Dropout(config.dropout)
        self.register_load_state_dict_pre_hook(self._fuse_heads)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to the same."""
        qkv = self._split_heads(self.qkv(x))  # (3, B, n_head, T, hs)
        out = causal_attention(qkv, self.dropout.p if self.training else 0.0)  # (B, n_head, T, hs)
        return self.dropout(self._project(out))  # (B, T, C)

    def weights(self, x: Tensor) -> Tensor:
        """How much each character of x, (B, T, C), attends to each: softmax(q k^T / sqrt(head_size)).

        Returns:
            (B, n_head, T, T): of each character, for each.
        """
        q, k, _ = self._split_heads(self.qkv(x))  # (B, n_head, T, hs) each
        T, head_size = q.shape[-2:]
        scores = q @ k.transpose(-2, -1) * head_size**-0.5  # (B, n_head, T, T)
        future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
        return scores.masked_fill(future, float("-inf")).softmax(-1)

    def read(self, x: Tensor, cache: LayerCache) -> Tensor:
        """What `forward` gives in eval mode, where x continues what was read with the cache before."""
        return self._project(cache.attend(self._split_heads(self.qkv(x), cache)))  # (B, T, C)

    def remember(self, x: Tensor, cache: LayerCache) -> None:
        """Put the keys and values of x, (B, T, C), into the cache, where only they are needed."""
        cache.extend(self._split_heads(linear(x, self.qkv.weight[x.shape[-1] :]), cache))

    def _split_heads(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """(B, T, n * n_head * hs) to (n, B, n_head, T, hs), which know their positions where these are rotary."""
        B, T, _ = x.shape
        x = x.view(B, T, -1, self.n_head, self.proj.in_features // self.n_head)
        if self.rotary:
            x = rotate(x, rotary_turns(T, x.shape[-1], x.device) if cache is None else cache.turns(T))
        return x.permute(2, 0, 3, 1, 4)

    def _project(self, out: Tensor) -> Tensor:
        """What the heads found, (B, n_head, T, hs), to (B, T, C)."""
        return self.proj(out.transpose(1, 2).flatten(2))

    @staticmethod
    def _fuse_heads(module: "MultiHeadAttention", state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
        """Turn the lecture's `heads.N.{query,key,value}.weight` into `qkv.weight`; drop its `tril` buffers."""

        def names() -> Iterator[str]:  # not a list: a configuration may claim any number of heads
            return (
                f"{prefix}heads.{n}.{part}.weight" for part in ("query", "key", "value") for n in range(module.n_head)
            )

        if all(name in state_dict for name in names()):
            state_dict[f"{prefix}qkv.weight"] = torch.cat([state_dict.pop(name) for name in names()])
            for n in range(module.n_head):
                state_dict.pop(f"{prefix}heads.{n}.tril", None)


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
    """A Transformer block: communication, then computation, each normalised first and added to what was there."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.sa = MultiHeadAttention(config)
        self.ffwd = FeedForward(config)
        self.ln1 = nn.LayerNorm(config.n_embd)
        self.ln2 = nn.LayerNorm(config.n_embd)
        self.shifted = config.shifted

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to the same."""
        x = x + self.sa(self._shift(self.ln1(x)))
        return x + self.ffwd(self._shift(self.ln2(x)))

    def _shift(self, x: Tensor) -> Tensor:
        """Give each character the first channels of the one before it; the first has zeros there."""
        if not self.shifted:
            return x
        before = F.pad(x[:, :-1, : self.shifted], (0, 0, 1, 0))
        return torch.cat([before, x[:, :, self.shifted :]], -1)


class GPT(nn.Module):
    """The lecture's decoder-only Transformer over characters.

    Args:
        config: its sizes.
        vocab_size: distinct characters.
    """

    def __init__(self, config: GPTConfig, vocab_size: int):
        super().__init__()
        self.config = config
        self.token_embedding_table = nn.Embedding(vocab_size, config.n_embd)
        if config.positions == "learned":
            self.position_embedding_table = nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = Linear(config.n_embd, vocab_size)
        self.apply(self._init_weights)
        if config.zero_init:
            for block in self.blocks:
                assert isinstance(block, Block)
                nn.init.zeros_(block.sa.proj.weight)
                nn.init.zeros_(block.ffwd.net[2].get_parameter("weight"))

    @staticmethod
    def _init_weights(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, idx: Tensor) -> Tensor:
        """Logits of the character after each one: ids (B, T) to (B, T, vocab_size).

        Raises:
            UserError: T is beyond block_size.
        """
        T = idx.shape[1]
        if self.config.block_size < T:
            raise UserError(f"a context of {T} characters is longer than block_size={self.config.block_size}")
        x = self._embed(idx, torch.arange(T, device=idx.device))  # (B, T, C)
        for block in self.blocks:
            x = block(x)  # (B, T, C)
        return self.lm_head(self.ln_f(x))

    def _embed(self, idx: Tensor, positions: Tensor) -> Tensor:
        x = self.token_embedding_table(idx)  # (B, T, C)
        if self.config.positions == "learned":
            x = x + self.position_embedding_table(positions)  # (T, C)
        return x

    def new_cache(self, batch_size: int, length: int | None = None) -> KVCache:
        """An empty cache, to `read` with.

        Args:
            batch_size: sequences.
            length: characters that it has room for in each; by default block_size.
        """
        config, weight = self.config, self.lm_head.weight
        shape = (config.n_layer, batch_size, config.n_head, length or config.block_size, config.n_embd // config.n_head)
        return KVCache(shape, weight.device, weight.dtype, config.shifted)

    @torch.no_grad()  # what the cache keeps has no gradients
    def read(self, idx: Tensor, cache: KVCache) -> Tensor:
        """Logits of the next character, after those read with the cache before and those of `idx`; in eval mode.

        Args:
            idx: (B, T) ids; the cache keeps what later reads need of them.

        Returns:
            (B, vocab_size).

        Raises:
            UserError: all that was read is longer than block_size.
        """
        x = self._embed(idx, cache.advance(idx.shape[1]))  # (B, T, C)
        # With token_shift, the last character's feed-forward layer needs the one before it, after attention.
        last, asked = self.blocks[-1], 2 if self.config.token_shift else 1
        for block, layer in zip(self.blocks, cache.layers, strict=True):
            assert isinstance(block, Block)
            if block is last and x.shape[1] > asked:  # of the others only the keys and values are needed here
                block.sa.remember(layer.shift(block.ln1(x[:, :-asked]), 0), layer)
                x = x[:, -asked:]
            x = x + block.sa.read(layer.shift(block.ln1(x), 0), layer)
            x = x + block.ffwd(layer.shift(block.ln2(x), 1))
        return self.lm_head(self.ln_f(x))[:, -1]


class Bigram(nn.Module):
    """The lecture's first model: a table that gives the next character's logits from the present one alone.

    Args:
        config: its size.
        vocab_size: distinct characters.
    """

    def __init__(self, config: BigramConfig, vocab_size: int):
        super().__init__()
        self.config = config
        self.token_embedding_table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, idx: Tensor) -> Tensor:
        """Logits of the character after each one: ids (B, T) to (B, T, vocab_size)."""
        return self.token_embedding_table(idx)

    def new_cache(self, batch_size: int, length: int | None = None) -> KVCache:
        """A cache without layers: the table needs no memory of earlier characters."""
        weight = self.token_embedding_table.weight
        return KVCache((0, batch_size, 1, length or self.config.block_size, 1), weight.device, weight.dtype)

    def read(self, idx: Tensor, cache: KVCache) -> Tensor:
        """Logits of the next character after `idx`: (B, T) ids to (B, vocab_size)."""
        cache.advance(idx.shape[1])
        return self.token_embedding_table(idx[:, -1])


ModelConfig = GPTConfig | BigramConfig
Model = GPT | Bigram
MODEL_CONFIGS: dict[str, type[ModelConfig]] = {"gpt": GPTConfig, "bigram": BigramConfig}


def build_model(config: ModelConfig, vocab_size: int) -> Model:
    """The model that a configuration is for."""
    return GPT(config, vocab_size) if isinstance(config, GPTConfig) else Bigram(config, vocab_size)

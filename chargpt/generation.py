"""Text from a model: read the prompt once, then one character at a time."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from chargpt.errors import NonFiniteError
from chargpt.kernels.layers import fixed_weights
from chargpt.model import Model
from chargpt.settings import require

WINDOWS = ("exact", "stride")
WORTH_FIXING = 32  # characters


@dataclass
class Sampling:
    """How a text is continued.

    Attributes:
        max_new_tokens: characters to generate.
        temperature: divides the logits; 0 takes the most likely character.
        top_k: draw among the k most likely characters only, and those that tie with the k-th.
        top_p: draw only among the most likely characters that add up to a probability of top_p (nucleus sampling,
            Holtzman et al. 2020).
        num_samples: continuations side by side (N).
        window: what happens once the text is longer than the model's window of `block_size` characters. Each character
            then moves to another position, which changes all keys and values.

            - `exact`: the last `block_size` characters are read again for each new one: the lecture's semantics.
            - `stride`: when the window is full, its last half is read again, and the window fills up as before. The
              context is between half a window and a whole one, so the text follows another distribution; it is
              several times faster.
    """

    max_new_tokens: int = 500
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    num_samples: int = 1
    window: str = "exact"

    def __post_init__(self) -> None:
        require(self.max_new_tokens >= 1, "max_new_tokens", "at least 1", self.max_new_tokens)
        require(0 <= self.temperature < float("inf"), "temperature", "0 (the likeliest) or more", self.temperature)
        require(self.top_k is None or self.top_k >= 1, "top_k", "at least 1", self.top_k)
        require(self.top_p is None or 0 < self.top_p <= 1, "top_p", "above 0 and at most 1", self.top_p)
        require(self.num_samples >= 1, "num_samples", "at least 1", self.num_samples)
        require(self.window in WINDOWS, "window", f"one of {', '.join(WINDOWS)}", self.window)


def next_token(logits: Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> Tensor:
    """Draw the next characters: logits (B, vocab_size) to ids (B,)."""
    logits = logits.float()
    if sampling.temperature == 0:
        return logits.argmax(-1)
    if sampling.temperature != 1:
        # Differences to the largest cannot overflow to +inf; float32 would take a temperature below 1e-38 for 0.
        logits = (logits - logits.amax(-1, keepdim=True)) / max(sampling.temperature, 1e-30)
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[:, -1:], float("-inf"))
    probs = logits.softmax(-1)  # (B, vocab_size)
    if sampling.top_p is not None:
        ranked = probs.sort(-1, descending=True).values
        before = ranked.cumsum(-1) - ranked  # the probability of all more likely characters
        least = ranked.masked_fill(before >= max(sampling.top_p, 1e-30), float("inf")).amin(-1, keepdim=True)
        probs = probs.masked_fill(probs < least, 0.0)
    # Draws like torch.multinomial, without its checks, which make the CPU wait for the GPU.
    return (probs / torch.empty_like(probs).exponential_(generator=generator)).argmax(-1)


@torch.inference_mode()
def generate(
    model: Model, idx: Tensor, sampling: Sampling | None = None, generator: torch.Generator | None = None
) -> Iterator[Tensor]:
    """Continue a text, one character at a time, in one or several ways side by side.

    Args:
        model: in eval mode.
        idx: (1, T) ids of the text so far, T >= 1.

    Yields:
        (N,) ids, `max_new_tokens` times.

    Raises:
        NonFiniteError: the logits are not finite. A CPU checks them for each character, other devices for the first
            one only, since the host would wait for the device.
    """
    sampling = sampling or Sampling()
    N, block_size = sampling.num_samples, model.config.block_size
    text = unread = idx[:, -block_size:]  # (1, T)
    cache = model.new_cache(1, min(block_size, text.shape[1] + sampling.max_new_tokens))
    kept = block_size if sampling.window == "exact" else max(1, block_size // 2)  # read again past the window
    with fixed_weights(model) if N == 1 and sampling.max_new_tokens >= WORTH_FIXING else nullcontext():
        for n in range(sampling.max_new_tokens):
            logits = model.forward(unread, cache)[:, -1]  # not model(...): torch.compile would compile each length
            if n == 0:  # the prompt is read once for all samples
                logits, text = logits.expand(N, -1), text.expand(N, -1)
                cache.expand(N)
            if (n == 0 or idx.is_cpu) and not logits.isfinite().all():
                raise NonFiniteError("the model's outputs are not finite numbers")
            token = next_token(logits, sampling, generator)  # (N,)
            yield token
            unread = token[:, None]
            text = torch.cat([text, unread], 1)
            if text.shape[1] > block_size:
                unread = text = text[:, -kept:]
                cache.clear()

"""Text from a model: read the prompt once, then one character at a time."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from chargpt.errors import NonFiniteError, UserError
from chargpt.kernels.capture import CapturedStep, worth_capturing
from chargpt.kernels.linear import fixed_weights
from chargpt.model import Model

WINDOWS = ("exact", "stride")
WORTH_FIXING = 32  # characters


@dataclass
class Sampling:
    """How a text is continued.

    Attributes:
        max_new_tokens: characters to generate.
        temperature: divides the logits; 0 takes the most likely character.
        top_k: draw among the k most likely characters only, and whatever ties with the k-th.
        top_p: draw only among characters such that all more likely ones together have a probability below top_p
            (nucleus sampling, Holtzman et al. 2020).
        num_samples: continuations side by side (N).
        window: what happens once the text no longer fits into the model's window of `block_size` characters. Then
            every character moves to another position, which changes all keys and values.

            - `exact`: the last `block_size` characters are read anew for each one written: the lecture's semantics.
            - `stride`: each time the window is full, its last half is read anew and the window fills up again. The
              context is between half a window and a whole one, so the text follows another distribution; it comes
              several times faster.

    Raises:
        UserError: a value is out of range.
    """

    max_new_tokens: int = 500
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    num_samples: int = 1
    window: str = "exact"

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens must be at least 1; got {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature must be 0 (always the most likely character) or more; got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k must be at least 1; got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1; got {self.top_p}")
        if self.num_samples < 1:
            raise UserError(f"num_samples must be at least 1; got {self.num_samples}")
        if self.window not in WINDOWS:
            raise UserError(f"window must be one of {', '.join(WINDOWS)}; got {self.window!r}")


def next_token(logits: Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> Tensor:
    """Draw the next characters.

    Args:
        logits: (B, vocab_size).
        generator: the source of randomness.

    Returns:
        (B,) ids.
    """
    logits = logits.float()
    if sampling.temperature == 0:
        return logits.argmax(-1)
    if sampling.temperature != 1:
        # Counted from the largest down, so that only what is too unlikely overflows; float32 lacks the extremes.
        wide = logits if 1e-30 < sampling.temperature < 1e30 else logits.to("cpu", torch.float64)
        logits = ((wide - wide.amax(-1, keepdim=True)) / sampling.temperature).to(logits)
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[:, -1:], float("-inf"))
    probs = logits.softmax(-1)  # (B, vocab_size)
    if sampling.top_p is not None:
        ranked = probs.sort(-1, descending=True).values
        before = ranked.cumsum(-1) - ranked  # the probability of all that stand before
        limit = max(sampling.top_p, 1e-30)  # what float32 takes for 0 would leave none
        least = ranked.masked_fill(before >= limit, float("inf")).amin(-1, keepdim=True)
        probs = probs.masked_fill(probs < least, 0.0)
    # What torch.multinomial does to draw once, less its checks, for which the host would wait for the device.
    return (probs / torch.empty_like(probs).exponential_(generator=generator)).argmax(-1)


@torch.inference_mode()
def generate(
    model: Model, idx: Tensor, sampling: Sampling | None = None, generator: torch.Generator | None = None
) -> Iterator[Tensor]:
    """Continue a text, one character at a time, in one or several ways side by side.

    While the text fits into the model's window, the keys and values of earlier characters come from a cache.

    Args:
        model: in eval mode.
        idx: (1, T) ids of the text so far, T >= 1; it is read once for all samples.
        sampling: how; by default as `Sampling()` says.
        generator: the source of randomness.

    Yields:
        (N,) ids, `max_new_tokens` times.

    Raises:
        UserError: so many characters, or texts side by side, need more memory than the machine has.
        NonFiniteError: the model's outputs are not finite. On a CPU each is looked at, elsewhere only the first: the
            host would wait for the device.
    """
    sampling = sampling or Sampling()
    N, block_size = sampling.num_samples, model.config.block_size
    idx = idx[:, -block_size:]  # (1, T)
    kept = block_size if sampling.window == "exact" else max(1, block_size // 2)  # characters read anew past the window
    length = min(block_size, idx.shape[1] + sampling.max_new_tokens)
    cache = model.new_cache(1, length)
    logits = model.read(idx, cache)  # (1, vocab_size)
    logits = logits.expand(N, -1)  # (N, vocab_size)
    cache.expand(N)
    text = list(idx.expand(N, -1).split(1, dim=1))  # of (N, 1)
    steps = sampling.max_new_tokens if kept < block_size else min(sampling.max_new_tokens, block_size - len(text))
    step = CapturedStep(model, cache) if worth_capturing(idx.device, steps, N) else partial(model.read, cache=cache)
    with fixed_weights(model) if steps >= WORTH_FIXING and N == 1 else nullcontext():
        check = True
        for remaining in reversed(range(sampling.max_new_tokens)):
            if check and not logits.isfinite().all():
                raise NonFiniteError("the model's outputs are not finite numbers")
            check = idx.is_cpu
            token = next_token(logits, sampling, generator)  # (N,)
            yield token
            text.append(token[:, None])
            if not remaining:
                return
            if len(text) <= block_size:
                logits = step(text[-1])
            else:
                text = text[-kept:]
                cache.clear()
                logits = model.read(torch.cat(text, dim=1), cache)

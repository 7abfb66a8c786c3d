"""Text from a model: read the prompt once, then one character at a time."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from chargpt.decode import GraphedDecoder, worth_capturing
from chargpt.errors import UserError

WINDOWS = ("exact", "stride")


def next_token(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw the next characters.

    Args:
        logits: (B, vocab_size).
        temperature: divides the logits; 0 takes the most likely character.
        top_k: draw among the k most likely characters only, and whatever ties with the k-th.
        top_p: draw only among characters such that all more likely ones together have a probability below top_p
            (nucleus sampling, Holtzman et al. 2020).
        generator: the source of randomness.

    Returns:
        (B,) ids.
    """
    logits = logits.float()
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], float("-inf"))
    probs = logits.softmax(-1)  # (B, vocab_size)
    if top_p is not None:
        ranked = probs.sort(-1, descending=True).values
        before = ranked.cumsum(-1) - ranked  # the probability of all that stand before
        least = ranked.masked_fill(before >= top_p, float("inf")).amin(-1, keepdim=True)
        probs = probs.masked_fill(probs < least, 0.0)
    # What torch.multinomial does to draw once, less its checks, for which the host would wait for the device.
    return (probs / torch.empty_like(probs).exponential_(generator=generator)).argmax(-1)


def check_sampling(
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    num_samples: int = 1,
    window: str = "exact",
) -> None:
    """Refuse what `generate` cannot do.

    Raises:
        UserError: a value is out of range.
    """
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens must be at least 1; got {max_new_tokens}")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature must be 0 (always the most likely character) or more; got {temperature}")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k must be at least 1; got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p must be above 0 and at most 1; got {top_p}")
    if num_samples < 1:
        raise UserError(f"num_samples must be at least 1; got {num_samples}")
    if window not in WINDOWS:
        raise UserError(f"window must be one of {', '.join(WINDOWS)}; got {window!r}")


@torch.inference_mode()
def generate(
    model: nn.Module,
    idx: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    *,
    num_samples: int = 1,
    window: str = "exact",
) -> Iterator[Tensor]:
    """Continue a text, one character at a time, in one or several ways side by side.

    While the text fits into the model's window of `block_size` characters, the keys and values of earlier characters
    come from a cache. Beyond it every character moves to another position, which changes them all. What then happens
    is `window`:

    - `exact`: the last `block_size` characters are read anew for each one written: the lecture's semantics.
    - `stride`: each time the window is full, its last half is read anew and the window fills up again. The context is
      between half a window and a whole one, so the text follows another distribution; it comes several times faster.

    Args:
        model: a `GPT` or `Bigram` in eval mode.
        idx: (1, T) ids of the text so far, T >= 1; it is read once for all samples.
        max_new_tokens: characters to generate.
        temperature, top_k, top_p, generator: see `next_token`.
        num_samples: continuations (N).
        window: `exact` or `stride`.

    Yields:
        (N,) ids, `max_new_tokens` times.

    Raises:
        UserError: a value is out of range.
    """
    check_sampling(max_new_tokens, temperature, top_k, top_p, num_samples, window)
    block_size = model.block_size
    context = idx[:, -block_size:]  # (1, T)
    cache = model.new_cache(1)
    logits = model(context, cache, last=True)[:, -1].expand(num_samples, -1)  # (N, vocab_size)
    text = list(context.expand(num_samples, -1).split(1, dim=1))  # of (N, 1)
    graph = None
    if cache is not None:
        cache.expand(num_samples)
        inside = max_new_tokens if window == "stride" else min(max_new_tokens, block_size - len(text))
        if worth_capturing(idx.device, inside, num_samples):
            graph = GraphedDecoder(model, cache)
    for remaining in reversed(range(max_new_tokens)):
        token = next_token(logits, temperature, top_k, top_p, generator)  # (N,)
        yield token
        if not remaining:
            return
        text.append(token[:, None])
        if len(text) > block_size and window == "exact":
            text = text[-block_size:]
            logits = model(torch.cat(text, dim=1), last=True)[:, -1]
        elif len(text) > block_size:
            text = text[-max(1, block_size // 2) :]
            cache = model.new_cache(num_samples)
            logits = model(torch.cat(text, dim=1), cache, last=True)[:, -1]
            if graph is not None:
                graph.cache.load(cache)
        elif graph is not None:
            logits = graph(token)
        else:
            logits = model(token[:, None], cache, last=True)[:, -1]

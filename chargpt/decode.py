"""Reading one more character on CUDA without the time that Python takes to launch it: a captured CUDA graph.

The same step run one operation at a time takes a GPU longer to be told than to do.
"""

import torch
from torch import Tensor, nn

from chargpt.attention import KVCache

# From how many characters on capturing pays, and up to how many samples: with many, reading only the part of the cache
# that is filled, which a graph cannot, is worth more. Both are guesses, not measured.
LEAST_CHARACTERS, MOST_SAMPLES = 32, 64


def worth_capturing(device: torch.device, characters: int, samples: int) -> bool:
    return device.type == "cuda" and characters >= LEAST_CHARACTERS and samples <= MOST_SAMPLES


class FixedCache(KVCache):
    """A cache whose filled length is a number on the device, so that each step is made of the same operations.

    All of it is attended to; a mask leaves out what is not filled yet.

    Args:
        like: a cache of the same sizes; `load` takes over what it has read.
    """

    def __init__(self, like: KVCache):
        self.layers = [torch.zeros_like(layer) for layer in like.layers]
        self.length = 0
        self.position = torch.zeros(1, dtype=torch.int64, device=self.layers[0].device)
        self.columns = torch.arange(self.layers[0].shape[-2], device=self.position.device)

    def load(self, cache: KVCache) -> None:
        """Take over what another cache has read."""
        for own, other in zip(self.layers, cache.layers, strict=True):
            own.copy_(other)
        self.position.fill_(cache.length)

    def positions(self, T: int) -> Tensor:
        self.mask = (self.columns <= self.position)[None]  # (1, block_size)
        return self.position

    def extend(self, layer: int, kv: Tensor) -> Tensor:
        return self.layers[layer].index_copy_(3, self.position, kv)

    def advance(self, T: int) -> None:
        self.position += 1


class GraphedDecoder:
    """The logits after one more character of each sample; on CUDA the same kernels are replayed at each call.

    Args:
        model: a `GPT` in eval mode.
        cache: what the model has read so far; it is copied.
    """

    def __init__(self, model: nn.Module, cache: KVCache):
        self.model = model
        self.cache = FixedCache(cache)
        self.token = torch.zeros(cache.layers[0].shape[1], 1, dtype=torch.int64, device=self.cache.position.device)
        self.graph = self._capture() if self.token.is_cuda else None
        self.cache.load(cache)  # only now: capturing writes into the cache

    def __call__(self, token: Tensor) -> Tensor:
        """Ids (N,) to logits (N, vocab_size), which hold until the next call."""
        self.token.copy_(token[:, None])
        if self.graph is None:
            self.logits = self._step()
        else:
            self.graph.replay()
        return self.logits

    def _step(self) -> Tensor:
        return self.model(self.token, self.cache, last=True)[:, -1]

    def _capture(self) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream(self.token.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries set themselves up at first calls, which cannot be captured
            self._step()
            self.cache.position.zero_()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on with what they do on the device, such as pinning the memory of batches.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.logits = self._step()
        return graph

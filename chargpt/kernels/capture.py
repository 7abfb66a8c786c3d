"""Reading one more character on CUDA without the time that Python takes to launch it: a captured CUDA graph.

Its kernels are so small that launching them one by one takes longer than running them.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from chargpt.attention import KVCache
    from chargpt.model import Model

# From how many characters on capturing pays, and up to how many samples: with many, reading only the part of the cache
# that is filled, which a graph cannot, is worth more. Both are guesses, not measured.
LEAST_CHARACTERS, MOST_SAMPLES = 32, 64


def worth_capturing(device: torch.device, characters: int, samples: int) -> bool:
    return device.type == "cuda" and characters >= LEAST_CHARACTERS and samples <= MOST_SAMPLES


class CapturedStep:
    """`model.read` of one more character with a given cache; on CUDA the same kernels are replayed at each call.

    Args:
        model: a model in eval mode.
        cache: the only one that the step reads and extends.
    """

    def __init__(self, model: "Model", cache: "KVCache"):
        self.model, self.cache = model, cache
        device = next(model.parameters()).device
        self.token = torch.zeros(cache.batch_size, 1, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.graph = self._capture() if device.type == "cuda" else None

    def __call__(self, token: Tensor) -> Tensor:
        """Ids (N, 1) to logits (N, vocab_size), which hold until the next call.

        Raises:
            UserError: the cache is full.
        """
        self.token.copy_(token)
        self.position.fill_(self.cache.length)
        if self.graph is None:
            self.logits = self._read()
        else:
            self.cache.advance(1)
            self.graph.replay()
        return self.logits

    def _read(self) -> Tensor:
        self.cache.fix(self.position)
        try:
            return self.model.read(self.token, self.cache)
        finally:
            self.cache.fix(None)

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Record the step, at the place of the next character, whose real read writes over it (a full cache is read
        anew before it is asked again)."""
        length = self.cache.length
        free = min(length, self.cache.block_size - 1)
        self.position.fill_(free)
        self.cache.length = free
        with torch.cuda.device(self.token.device):  # PyTorch captures on the current device
            stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # libraries set themselves up at first calls, which cannot be captured
                self._read()
            torch.cuda.current_stream().wait_stream(stream)
            self.cache.length = free
            # Other threads may go on with what they do on the device, such as pinning the memory of batches.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self.logits = self._read()
        self.cache.length = length
        return graph

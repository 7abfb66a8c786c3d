"""Train and sample character-level GPTs.

The names that a notebook needs are here. Each is imported at its first use: `import chargpt` alone loads no torch.
"""

import os
import sys
from importlib import import_module
from typing import Any

if "ipykernel" not in sys.modules:  # matplotlib fails with a backend inherited from a notebook
    os.environ.pop("MPLBACKEND", None)

_NAMES = {
    "batches": ["DataConfig"],
    "checkpoint": ["load_checkpoint"],
    "data": ["CharDataModule"],
    "generation": ["Sampling", "generate"],
    "model": ["Bigram", "BigramConfig", "GPT", "GPTConfig"],
    "module": ["CharLM"],
    "optim": ["AdamWConfig"],
    "tokenizer": ["CharTokenizer"],
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)

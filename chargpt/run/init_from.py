"""Start from trained weights (`init_from=`), for another text."""

import logging
from dataclasses import asdict
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from chargpt.checkpoint import Checkpoint, find_checkpoint, read_checkpoint
from chargpt.errors import UserError
from chargpt.model import Model
from chargpt.run.resume import Resumption
from chargpt.tokenizer import CharTokenizer, Tokenizer

log = logging.getLogger(__name__)

MAY_DIFFER = ("dropout", "zero_init")  # they do not change what trained weights compute


def begin_from(cfg: DictConfig, resumption: Resumption | None = None) -> tuple[DictConfig, Checkpoint | None]:
    """The configuration with the architecture of the model that `init_from` names, and that model. A run that resumes
    has both in its checkpoint."""
    if cfg.init_from is None:
        return cfg, None
    initial = None
    if resumption is not None:
        settings = asdict(resumption.checkpoint.model.config)
    else:
        initial = read_checkpoint(find_checkpoint(cfg.init_from))
        settings = _architecture(cfg, asdict(initial.model.config))
    cfg = cfg.copy()
    OmegaConf.update(cfg, "model", settings, merge=False, force_add=True)
    return cfg, initial


def _architecture(cfg: DictConfig, trained: dict[str, Any]) -> dict[str, Any]:
    """The settings of a trained model, with the typed ones that may differ; others must not."""
    task = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    typed = {each.partition("=")[0].lstrip("+") for each in task}
    chosen = {key: value for key, value in cfg.model.items() if key == "name" or f"model.{key}" in typed}
    for key, value in chosen.items():
        if key not in MAY_DIFFER and value != trained.get(key):
            option = "model=" if key == "name" else f"model.{key}="
            raise UserError(f"init_from={cfg.init_from} has weights for {option}{trained.get(key)}, not for {value}")
    return trained | chosen


def extended(initial: Checkpoint, text: Tokenizer) -> Tokenizer:
    """The vocabulary of a model, extended by the characters of a text that are new to it."""
    if initial.tokenizer.characters is None or text.characters is None:
        if initial.tokenizer.characters != text.characters:
            kind = initial.tokenizer.kind
            raise UserError(f"init_from= names a model of {kind}: add data.tokenizer={kind}")
        return text
    new = "".join(sorted(set(text.characters) - set(initial.tokenizer.characters)))
    if new:
        log.info(f"{len(new)} characters are new to the model and start untrained: {new[:200]!r}")
    return CharTokenizer("".join(sorted(set(initial.tokenizer.characters) | set(new))))


def copy_weights(initial: Checkpoint, net: Model, vocabulary: Tokenizer) -> None:
    """Copy the weights into a model of the same architecture. Rows of new characters keep their initial values."""
    rows = torch.tensor(vocabulary.encode(initial.tokenizer.characters or ""))
    before = initial.model.state_dict()
    with torch.no_grad():
        for name, weight in net.state_dict().items():
            old = before[name].to(weight.dtype)
            if old.shape == weight.shape:
                weight.copy_(old)
            elif old.shape[1:] == weight.shape[1:]:
                weight[rows] = old
            else:  # a bigram's table
                weight[rows[:, None], rows] = old

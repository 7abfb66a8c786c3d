"""Start from trained weights (`init_from=`), for another text."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from chargpt.checkpoint import find_checkpoint, read_checkpoint
from chargpt.errors import UserError
from chargpt.model import Model
from chargpt.run.resume import Resumption
from chargpt.tokenizer import CharTokenizer, Tokenizer

log = logging.getLogger(__name__)

FREE = ("dropout", "zero_init")  # may differ: they do not change what trained weights compute


class Initial(NamedTuple):
    """A trained model to start from, and its vocabulary."""

    path: Path
    model: Model
    tokenizer: Tokenizer


def begin_from(cfg: DictConfig, resumption: Resumption | None = None) -> tuple[DictConfig, Initial | None]:
    """The configuration with the architecture of the model that `init_from` names, and that model. A run that resumes
    has both in its checkpoint."""
    if cfg.init_from is None:
        return cfg, None
    if resumption is not None:
        cfg = cfg.copy()
        OmegaConf.update(cfg, "model", asdict(resumption.checkpoint.model.config), merge=False, force_add=True)
        return cfg, None
    path = find_checkpoint(cfg.init_from)
    checkpoint = read_checkpoint(path)
    settings = asdict(checkpoint.model.config)
    typed: set[str] = set()
    if HydraConfig.initialized():
        for override in OverridesParser.create().parse_overrides(HydraConfig.get().overrides.task):
            value = override.value()
            typed |= {f"{override.key_or_group}.{key}" for key in (value if isinstance(value, dict) else ())}
            typed.add(override.key_or_group)
    asked: dict[str, Any] = OmegaConf.to_container(cfg.model, resolve=True)  # type: ignore[assignment]  # it is one
    if asked.get("name") != settings["name"]:
        raise UserError(f"init_from={cfg.init_from} is a {settings['name']}: add model={settings['name']}")
    for key in (key for key in asked if f"model.{key}" in typed):
        if key in FREE:
            settings[key] = asked[key]
        elif asked[key] != settings.get(key):
            raise UserError(
                f"init_from={cfg.init_from} has model.{key}={settings.get(key)}, on which its weights depend:"
                f" leave model.{key}={asked[key]} out"
            )
    cfg = cfg.copy()
    OmegaConf.update(cfg, "model", settings, merge=False, force_add=True)
    return cfg, Initial(path, checkpoint.model, checkpoint.tokenizer)


def extended(initial: Initial, text: Tokenizer) -> Tokenizer:
    """The vocabulary of a model, extended by the characters of a text that are new to it."""
    if initial.tokenizer.characters is None or text.characters is None:
        if initial.tokenizer.characters != text.characters:
            kind = initial.tokenizer.kind
            raise UserError(f"init_from={initial.path} is a model of {kind}: add data.tokenizer={kind}")
        return text
    new = "".join(sorted(set(text.characters) - set(initial.tokenizer.characters)))
    if new:
        log.info(f"{len(new)} characters are new to the model and start untrained: {new[:200]!r}")
    return CharTokenizer("".join(sorted(set(initial.tokenizer.characters) | set(new))))


def copy_weights(initial: Initial, net: Model, vocabulary: Tokenizer) -> None:
    """Copy the weights into a model of the same architecture. Rows of new characters keep their initial values."""
    rows = torch.tensor(vocabulary.encode(initial.tokenizer.characters or ""))
    before = initial.model.state_dict()
    with torch.no_grad():
        for name, weight in net.state_dict().items():
            old = before[name]
            grown = [dim for dim, (a, b) in enumerate(zip(old.shape, weight.shape, strict=True)) if a != b]
            if grown == [0, 1]:  # a bigram's table
                weight[rows[:, None], rows] = old.to(weight.dtype)
            elif grown:
                weight[rows] = old.to(weight.dtype)
            else:
                weight.copy_(old)

"""Weights to start from: another run's, for a text of one's own."""

import logging
from collections.abc import Iterator
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
from chargpt.tokenizer import CharTokenizer, Tokenizer

log = logging.getLogger(__name__)

FREE = ("dropout", "zero_init")  # may differ: they do not change what trained weights compute


class Initial(NamedTuple):
    """A trained model to start from, and the vocabulary that it knows."""

    path: Path
    model: Model
    tokenizer: Tokenizer


def begin_from(cfg: DictConfig) -> tuple[DictConfig, Initial]:
    """The configuration with the architecture of the model that `init_from` names, and that model.

    Raises:
        UserError: there is none, it cannot be used, or the command line names another architecture.
    """
    path = find_checkpoint(cfg.init_from)
    checkpoint = read_checkpoint(path)
    settings = asdict(checkpoint.model.config)
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    said = list(said_in(overrides))
    ours: dict[str, Any] = OmegaConf.to_container(cfg.model, resolve=True)  # type: ignore[assignment]  # it is one
    if ours.get("name") != settings["name"]:
        raise UserError(
            f"init_from={cfg.init_from} is a {settings['name']}: say model={settings['name']}, too"
        )
    for key in (key for key in ours if f"model.{key}" in said):
        if key in FREE:
            settings[key] = ours[key]
        elif ours[key] != settings.get(key):
            raise UserError(
                f"init_from={cfg.init_from} has model.{key}={settings.get(key)}, on which its weights depend:"
                f" leave model.{key}={ours[key]} out"
            )
    cfg = OmegaConf.create(cfg)  # the caller's stays as it is
    OmegaConf.update(cfg, "model", settings, merge=False, force_add=True)
    return cfg, Initial(path, checkpoint.model, checkpoint.tokenizer)


def said_in(overrides: list[str]) -> Iterator[str]:
    """The keys that overrides give values to."""
    for override in OverridesParser.create().parse_overrides(overrides):
        value = override.value()
        yield from (f"{override.key_or_group}.{key}" for key in (value if isinstance(value, dict) else ()))
        yield override.key_or_group


def extended(initial: Initial, text: Tokenizer) -> Tokenizer:
    """The vocabulary of a model and the characters of a text that it does not know, which are told.

    Raises:
        UserError: one is of characters, and the other of bytes.
    """
    if initial.tokenizer.characters is None or text.characters is None:
        if initial.tokenizer.characters != text.characters:
            kind = initial.tokenizer.kind
            raise UserError(f"init_from={initial.path} is a model of {kind}: say data.tokenizer={kind}, too")
        return text
    new = "".join(sorted(set(text.characters) - set(initial.tokenizer.characters)))
    if new:
        log.info(f"{len(new)} characters are new to the model and start untrained: {new[:200]}")
    return CharTokenizer("".join(sorted(set(initial.tokenizer.characters) | set(new))))


def copy_weights(initial: Initial, net: Model, vocabulary: Tokenizer) -> None:
    """Put the weights into a model of the same architecture, whose vocabulary may have more characters: what belongs to
    those stays as it was initialized."""
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

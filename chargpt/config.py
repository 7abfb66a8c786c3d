"""The shape of the configuration: keys and types are checked against it as Hydra composes `conf/`.

The values stand in `conf/`, and what they mean in the class that takes them; ranges are checked there.
"""

import difflib
import hashlib
import re
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from chargpt.errors import UserError


@dataclass
class GPTConfig:
    name: str
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float


@dataclass
class BigramConfig:
    name: str
    block_size: int


@dataclass
class DataConfig:
    source: str
    path: str | None
    fallback: str | None
    val_fraction: float
    block_size: int
    batch_size: int
    num_workers: int
    seed: int


@dataclass
class OptimizerConfig:
    lr: float
    weight_decay: float
    betas: list[float]
    schedule: str
    warmup_steps: int
    min_lr_factor: float


@dataclass
class TrainConfig:
    seed: int
    run_dir: str
    resume: str | None
    data: DataConfig
    model: Any  # GPTConfig or BigramConfig
    optimizer: OptimizerConfig
    trainer: dict[str, Any]  # Lightning checks these two
    callbacks: dict[str, Any]
    compile: Any = "auto"  # the configuration of a run from before this key has none


MODEL_CONFIGS = {"gpt": GPTConfig, "bigram": BigramConfig}


def register() -> None:
    """Make the shapes known to Hydra, as the group `schema`, and the resolver that names a sweep's folders."""
    store = ConfigStore.instance()
    for name, node in (("train", TrainConfig), ("data", DataConfig), ("optimizer", OptimizerConfig)):
        store.store(group="schema", name=name, node=node)
    for name, node in MODEL_CONFIGS.items():
        store.store(group="schema/model", name=name, node=node)
    OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
    OmegaConf.register_new_resolver("unless", lambda condition, value: None if condition else value, replace=True)


def check_keys(cfg: DictConfig, prefix: str = "") -> None:
    """Refuse keys that no part of the program reads: Hydra lets any key in that is given with a +.

    Raises:
        UserError: there is one.
    """
    shape = OmegaConf.get_type(cfg)
    known = [field.name for field in fields(shape)] if is_dataclass(shape) else list(cfg)
    for key in cfg:
        if key not in known:
            raise UserError(f"unknown key {prefix}{key}{did_you_mean(key, known, prefix)}")
        if OmegaConf.is_dict(cfg[key]):
            check_keys(cfg[key], f"{prefix}{key}.")


def did_you_mean(key: str, known: Iterable[str], prefix: str) -> str:
    """The end of a message about an unknown key."""
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else f" (there are {', '.join(sorted(known))})"


def folder_name(overrides: str) -> str:
    """One folder's name for a job's overrides: no separators in it, and no longer than file systems allow."""
    name = re.sub(r"[^\w.,=+-]", "_", overrides).strip(".") or "defaults"
    if len(name.encode()) <= 200:
        return name
    return f"{name.encode()[:190].decode(errors='ignore')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


class CheckOutputFolder(Callback):
    """Ends a run with one line and status 2 where Hydra would show a traceback: the output folder is not writable."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        self._check(config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        self._check(config.hydra.sweep.dir)

    @staticmethod
    def _check(folder: str) -> None:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(bytes(4096))
        except OSError as error:
            print(f"error: {output_folder_error(folder, error)}", file=sys.stderr)
            sys.exit(2)


def output_folder_error(folder: str, error: OSError) -> str:
    return f"cannot write to the output folder {folder}: {error.strerror}; hydra.run.dir=... names another"

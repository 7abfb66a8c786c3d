"""The configuration of a run: Hydra's schema for it, and the dataclasses that are made of it.

The values stand in `conf/`. Keys and types are checked as Hydra composes them, ranges by the classes themselves.
"""

import functools
from dataclasses import dataclass, fields
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from chargpt.batches import DataConfig
from chargpt.errors import UserError, did_you_mean
from chargpt.model import MODEL_CONFIGS, ModelConfig
from chargpt.optim import OPTIMIZER_CONFIGS, OptimizerConfig
from chargpt.run.sweep import job_folder
from chargpt.settings import make, read_settings

HYDRA_1_3 = hydra.__version__.startswith("1.3")
VERSION_BASE = {"version_base": "1.3"} if HYDRA_1_3 else {}  # what Hydra 1.3 wants to be told, and 1.4 no longer
# And 1.4: which classes its own configuration may name.
OURS = ["chargpt.run.sweep.RecordSweep", "chargpt.run.messages.Printable"]
ALLOWED: dict[str, Any] = {} if HYDRA_1_3 else {"execution_whitelist": OURS}


@dataclass
class TrainConfig:
    """What `conf/train.yaml` composes."""

    seed: int
    run_dir: str
    resume: str | None
    init_from: str | None
    data: DataConfig
    model: Any  # one of MODEL_CONFIGS
    optimizer: Any  # one of OPTIMIZER_CONFIGS
    trainer: dict[str, Any]  # arguments of Lightning's Trainer
    callbacks: dict[str, Any]
    compile: Any = "auto"


@dataclass
class Settings(TrainConfig):
    """The same, checked: what a run is built from."""

    model: ModelConfig
    optimizer: OptimizerConfig


@functools.cache  # once is enough, and Hydra 1.4 warns of a second time
def register() -> None:
    """Make the schema known to Hydra, as the group `schema`, and the resolvers that `conf/train.yaml` uses."""
    store = ConfigStore.instance()
    store.store(group="schema", name="train", node=TrainConfig)
    store.store(group="schema", name="data", node=DataConfig)
    for group, configs in (("model", MODEL_CONFIGS), ("optimizer", OPTIMIZER_CONFIGS)):
        for name, node in configs.items():
            store.store(group=f"schema/{group}", name=name, node=node)
    # Any argument of the Trainer may be given, without a plus, also those that no file in conf/ names.
    store.store(group="schema", name="trainer", node=OmegaConf.create({}, flags={"struct": False}))
    register_resolver = OmegaConf.register_new_resolver if HYDRA_1_3 else OmegaConf.register_resolver  # as 2.4 calls it
    options: dict[str, Any] = {"replace": True}  # which one of the two does not declare
    register_resolver("job_folder", job_folder, **options)
    register_resolver("output_dir", _output_dir, **options)


def _output_dir() -> str:
    """Where Hydra writes; while it only shows a configuration (`--cfg job --resolve`), where it would."""
    hydra: Any = HydraConfig.get()
    return OmegaConf.select(hydra, "runtime.output_dir") or hydra.run.dir


def read_config(cfg: DictConfig) -> Settings:
    """The settings of a composed configuration.

    Raises:
        UserError: a key is unknown (Hydra lets any key in that is given with a plus), or a value out of range.
    """
    known = [field.name for field in fields(TrainConfig)]
    for key in map(str, cfg):
        if key not in known:
            raise UserError(f"unknown key {key}{did_you_mean(key, known)}")
    for key in known:
        if key not in cfg:
            raise UserError(f"the configuration has no {key}")
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    for group in ("trainer", "callbacks"):
        if not isinstance(plain[group], dict):
            raise UserError(f"{group} must be a mapping; got {plain[group]!r}")
    if not 0 <= plain["seed"] < 2**32:
        raise UserError(f"seed must be at least 0 and below 2**32; got {plain['seed']}")
    checked = {
        "data": make("data", DataConfig, plain["data"]),
        "model": read_settings("model", MODEL_CONFIGS, plain["model"]),
        "optimizer": read_settings("optimizer", OPTIMIZER_CONFIGS, plain["optimizer"]),
    }
    return Settings(**(plain | checked))

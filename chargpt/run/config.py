"""The configuration of a run: Hydra's schema for it, and the dataclasses that it becomes.

The values are in `conf/`. Hydra checks keys and types as it composes them, the dataclasses check ranges.
"""

import functools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from chargpt.batches import DataConfig
from chargpt.errors import UserError, did_you_mean, first_line
from chargpt.model import MODEL_CONFIGS
from chargpt.optim import OPTIMIZER_CONFIGS
from chargpt.settings import make, read_settings

CONF = Path(__file__).resolve().parents[2] / "conf"
TEXTS = ("data.path", "data.val_path", "data.test_path")
NAMES = r"(.+\.)?(path|val_path|test_path|init_from|resume|dir|subdir|save_dir|dirpath|name|encoding|study_name|prompt)"
FUNCTION = r"(?:choice|range|glob|shuffle|sort|tag|extend_list|str)\("  # Hydra's
HYDRA_VALUE = rf"null$|[\[{{]|.*\$\{{|.*,|{FUNCTION}"
ITEMS = rf"(?!{FUNCTION}|.*\],\[)(\[?)([^'\"${{}}\\]+?)(\]?)"  # a list, or the values of a sweep
FLAG = "-[hpmric]|-sc|-c[pnd]|--(help|hydra-help|version|cfg|resolve|package|run|multirun|shell-comp.*|info|config-.*)"


@dataclass
class Settings:
    """Hydra's schema for `conf/train.yaml`; after `read_config` has checked it, what a run is built from."""

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


@functools.cache
def register() -> None:
    """Make the schema known to Hydra, as the group `schema`, and the resolver of `run_dir`."""
    store = ConfigStore.instance()
    store.store(group="schema", name="train", node=Settings)
    store.store(group="schema", name="data", node=DataConfig)
    for group, configs in (("model", MODEL_CONFIGS), ("optimizer", OPTIMIZER_CONFIGS)):
        for name, node in configs.items():
            store.store(group=f"schema/{group}", name=name, node=node)
    # Any argument of the Trainer may be given without a plus, also one that no file in conf/ names.
    store.store(group="schema", name="trainer", node=OmegaConf.create({}, flags={"struct": False}))
    OmegaConf.register_new_resolver("output_dir", _output_dir, replace=True)


def _output_dir() -> str:
    """Where Hydra writes, or would write if it only shows the configuration (`--cfg job --resolve`)."""
    hydra: Any = HydraConfig.get()
    return OmegaConf.select(hydra, "runtime.output_dir") or hydra.run.dir


def composed(overrides: list[str]) -> DictConfig:
    """The configuration that `python train.py OVERRIDES` would run with."""
    if GlobalHydra.instance().is_initialized():
        return compose("train", overrides)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides)


def read_config(cfg: DictConfig) -> Settings:
    """The settings of a composed configuration."""
    known = {field.name for field in fields(Settings)}
    for key in set(map(str, cfg)) - known:  # Hydra accepts any new key with a plus
        raise UserError(f"unknown key {key}{did_you_mean(key, known)}")
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    if not 0 <= plain["seed"] < 2**32:
        raise UserError(f"seed must be at least 0 and below 2**32; got {plain['seed']}")
    checked = {
        "model": read_settings("model", MODEL_CONFIGS, plain["model"]),
        "data": make("data", DataConfig, plain["data"]),
        "optimizer": read_settings("optimizer", OPTIMIZER_CONFIGS, plain["optimizer"]),
    }
    return Settings(**(plain | checked))


def is_override(argument: str) -> bool:
    """Whether a word of the command line is one of Hydra's overrides, and not a flag or a flag's value."""
    return not argument.startswith("-") and ("=" in argument or argument.startswith("~"))


def prepared(arguments: list[str]) -> list[str]:
    """The command line with flags first, paths and names in quotes (Hydra would read the folder `2026_01_31` as a
    number) and `~` expanded. `trainer.logger={...}` first removes the default logger: Hydra merges mappings."""
    quoted = []
    for argument in sorted(arguments, key=is_override):
        if argument.startswith("-") and not re.fullmatch(FLAG, argument.partition("=")[0]):
            how = "values are set as group.key=value (trainer.max_steps=100); python train.py --cfg job shows all"
            raise UserError(f"unknown option {argument}: {how}")
        if re.match(r"\+{0,2}trainer\.logger=[\[{]", argument) and "~trainer.logger" not in arguments:
            quoted.append("~trainer.logger")
        key, _, value = argument.partition("=")
        if re.fullmatch(NAMES, key.lstrip("+")) and re.match("""['"]?~|[^'"]""", value):  # not in quotes already
            path = os.path.expanduser(value.strip("'\"") if value[0] in "'\"" else value)
            if os.path.exists(path) or not re.match(HYDRA_VALUE, path):
                argument = f"{key}={in_hydras_quotes(path)}"
            elif found := re.fullmatch(ITEMS, value):
                names = [each if each == "null" else in_hydras_quotes(each.strip()) for each in found[2].split(",")]
                argument = f"{key}={found[1]}{','.join(names)}{found[3]}"
        quoted.append(argument)
    return quoted


def in_hydras_quotes(value: str) -> str:
    """A text as Hydra reads it on a command line: a quote is escaped, as are backslashes before it and at the end."""
    doubled = re.sub(r"(\\+)(?='|\Z)", r"\1\1", value)
    return "'" + doubled.replace("'", "\\'") + "'"


@contextmanager
def hydra_errors() -> Iterator[None]:
    """Raise what Hydra and OmegaConf refuse as a `UserError` in one line, with the key that was probably meant."""
    try:
        yield
    except OverrideParseException as error:
        hint = "values are set as group.key=value, special characters in quotes: \"data.path='my file, 2.txt'\""
        reasons = [line for line in str(error).splitlines() if " while evaluating " in line]  # choice(...) and the like
        raise UserError(f"cannot read {error.override}: {(reasons or [hint])[0]}") from error
    except (HydraException, OmegaConfBaseException) as error:
        lines = [first_line(each) for each in (error, error.__cause__) if each]
        raise UserError(": ".join(dict.fromkeys(lines)) + _hint(error)) from error
    except ValueError as error:
        if isinstance(error.__cause__, OSError):  # the log cannot be written
            raise error.__cause__ from None
        if re.match("Config group override|The --resolve flag|Only one of --|Categorical", str(error)):  # or Optuna's
            raise UserError(first_line(error)) from error
        raise


def _hint(error: Exception) -> str:
    """What may have been meant by a key, an option or a value that Hydra does not take."""
    if "Ambiguous value" in str(error):
        texts = next((key for key in TEXTS if f"'{key}=" in str(error)), "")
        return f"; several texts are a list: '{texts}=[a.txt,b.txt]'" if texts else "; -m trains a run for each value"
    if isinstance(error, MissingConfigException) and "/" in (error.missing_cfg_file or ""):
        file = Path(str(error.missing_cfg_file))
        folder = next(each for each in file.parents if (CONF / each).is_dir())
        return did_you_mean(file.stem, [each.stem for each in (CONF / folder).glob("*.yaml")], f"{folder.as_posix()}=")
    cause: Any = error.__cause__
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and OmegaConf.is_dict(cause.parent_node):
        key: str = str(cause.key)
        node: dict[str, Any] = OmegaConf.to_container(cause.parent_node)  # type: ignore[assignment]  # it is a dict
        prefix = str(cause.full_key).removesuffix(key)
        for group in (name for name, value in node.items() if isinstance(value, dict) and key in value):
            return f"; did you mean {prefix}{group}.{key}?"
        return did_you_mean(key, node, prefix)
    return ""

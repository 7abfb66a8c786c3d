"""The configuration that a run's folder keeps, which may come from a stranger.

A run goes on with a configuration composed anew from our own `conf/`, by the options that the run chose there. What the
folder says contributes values of known keys: no class, no path of output and no interpolation is taken from it.
"""

import logging
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from chargpt.errors import UserError, first_line
from chargpt.run.folder import CHOICES, CONFIG

log = logging.getLogger(__name__)

CONF = Path(__file__).parents[2] / "conf"
OWN = ("run_dir", "resume")  # what stands here belongs to this start, not to the run
FIXED = (  # changing these would not go on with the run: weights, optimizer state and batches depend on them
    "model", "optimizer", "seed", "data.seed", "data.batch_size", "data.block_size", "data.val_fraction",
    "trainer.accumulate_grad_batches",
)  # fmt: skip


def groups_of_conf() -> set[str]:
    """The groups of `conf/`."""
    return {folder.name for folder in CONF.iterdir() if folder.is_dir()}


def options_of(group: str) -> set[str]:
    """The options of a group of `conf/`."""
    return {file.stem for file in (CONF / group).glob("*.yaml")}


def choices_of(run: Path) -> dict[str, str]:
    """Which options the run chose from the groups of `conf/`.

    Raises:
        UserError: the record of them is damaged, or an option is not there.
    """
    if not (run / CHOICES).exists():
        return {}
    groups, stored = groups_of_conf(), _load(run / CHOICES)
    try:
        recorded = stored["hydra"]["runtime"]["choices"].items()
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{run / CHOICES} is damaged: it does not say what was chosen") from error
    choices = {group: str(option) for group, option in recorded if group in groups and option is not None}
    for group, option in choices.items():
        if option not in options_of(group):
            raise UserError(f"the run chose {group}={option}, which is not in conf/{group}/")
    return choices


def _load(file: Path) -> Any:
    """A YAML file as plain containers, interpolations left as they stand.

    Raises:
        UserError: it is damaged.
    """
    try:
        return OmegaConf.to_container(OmegaConf.load(file))
    except Exception as error:  # what a damaged or foreign file raises depends on the damage
        raise UserError(f"{file} is damaged: {first_line(error)}") from error


def resumed_config(cfg: DictConfig, run: Path, overrides: list[str]) -> DictConfig:
    """The run's own configuration with today's overrides, each of which is told in the log.

    Args:
        cfg: as Hydra composed it of `conf/`, the run's choices and the overrides.
        overrides: as on the command line, `key=value`.

    Raises:
        UserError: an override cannot be honoured, or the run's configuration is damaged or has what must be said again.
    """
    values = _leaves(_load(run / CONFIG))
    if values is None:
        raise UserError(f"{run / CONFIG} is damaged: it is not a mapping of names")
    parsed = OverridesParser.create().parse_overrides(overrides)
    said = dict.fromkeys(each.key_or_group for each in parsed if each.key_or_group not in {"resume", *groups_of_conf()})
    cfg = OmegaConf.create(cfg)  # the caller's stays as it is
    ours = _leaves(OmegaConf.to_container(cfg)) or {}  # as they stand, interpolations included
    left = {key: value for key, value in values.items() if not _is_below(key, {*OWN, *said})}
    unsaid = [key for key, value in left.items() if not _take(cfg, key, value, ours.get(key, _missing))]
    if unsaid:
        had = ", ".join(f"{key}={values[key]}" for key in unsaid)
        again = " ".join(shlex.quote(f"{'' if _is_known(cfg, key) else '+'}{key}={values[key]}") for key in unsaid)
        raise UserError(
            f"{run} had {had}, which is not taken from a run's folder. To go on with it, say it again:"
            f" python train.py {shlex.quote(f'resume={run}')} {again}"
        )
    for key in said:
        if key in values:
            _tell_change(key, _resolved(values, key), OmegaConf.select(cfg, key))
    cfg.run_dir = str(run.absolute())
    return cfg


def _is_below(key: str, others: Iterable[str]) -> bool:
    """Whether a key is one of the others, or inside one."""
    return any(key == other or key.startswith(f"{other}.") for other in others)


def _is_known(cfg: DictConfig, key: str) -> bool:
    """Whether a configuration takes a key without a plus; of the Trainer it takes any."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    return parent == "trainer" or (OmegaConf.is_dict(node) and name in node)


def _tell_change(key: str, before: Any, after: Any) -> None:
    if before == after:
        return
    if _is_below(key, FIXED):
        raise UserError(
            f"{key}={after} cannot be honoured: the run began with {key}={before}, on which its weights, its"
            " optimizer's state or its batches depend; start a new run for it"
        )
    log.info(f"Changed: {key}={after} (was {before})")


def _resolved(values: dict[str, Any], key: str) -> Any:
    """A stored value; of another key's where it only points there, as `data.seed` does to `seed`."""
    value = values[key]
    pointer = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
    return values.get(pointer[1], value) if pointer else value


_missing = object()


def _take(cfg: DictConfig, key: str, value: Any, ours: Any) -> bool:
    """Put a stored value into the configuration where that is harmless; whether nothing of it is lost.

    Harmless are numbers, booleans, null and lists of them, and text where `conf/` has text that is neither a class nor
    where output goes.
    """
    if value == ours:
        return True
    if isinstance(value, str):
        if key.endswith("._target_"):  # ours stands, also where the class has moved since
            return key == "trainer._target_" or str(ours).rpartition(".")[2] == value.rpartition(".")[2]
        if isinstance(ours, str) and "${" in ours:
            return "${" in value  # what hangs on another key still does, however it is written by now
        if ours is _missing or "${" in value or key.startswith("trainer.logger."):
            return False
    elif not all(
        each is None or isinstance(each, int | float) for each in (value if isinstance(value, list) else [value])
    ):
        return False
    if not _is_known(cfg, key):
        return False
    try:
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    except OmegaConfBaseException:  # of another type than the key's
        return False
    return True


def _leaves(node: Any, path: str = "") -> dict[str, Any] | None:
    """The values in a tree of dicts by the path to each, a list being a value; None if it is no such tree."""
    if not isinstance(node, dict):
        return {path: node} if path else None
    found: dict[str, Any] = {}
    for name, value in node.items():
        below = _leaves(value, f"{path}.{name}" if path else name) if isinstance(name, str) else None
        if below is None:
            return None
        found |= below
    return found

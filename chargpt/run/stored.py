"""The configuration that a run's folder keeps, which may come from a stranger.

A run goes on with a configuration composed anew from our own `conf/`, by the options that the run chose there. What the
folder says contributes values of known keys: no class, no path and no interpolation is taken from it.
"""

import inspect
import io
import logging
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml  # what OmegaConf reads with
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from chargpt.errors import UserError, first_line
from chargpt.files import write_whole
from chargpt.run.config import VERSION_BASE
from chargpt.run.folder import CHOICES, CONFIG, short

log = logging.getLogger(__name__)

CONF = Path(__file__).parents[2] / "conf"
OWN = ("run_dir", "resume", "init_from")  # what stands here belongs to this start, not to the run
TEXTS = ("data.path", "data.val_path", "data.test_path")  # not taken either: a run finds its texts by the hash
NOT_STORED = (  # an engine may read files in ways of its own, and several nodes wait for one another
    "trainer.strategy", "trainer.num_nodes",
)  # fmt: skip
FIXED = (  # changing these would not go on with the run: weights, optimizer state and batches depend on them
    "model", "optimizer", "seed", "data.seed", "data.batch_size", "data.block_size", "data.split",
    "data.tokenizer", "trainer.accumulate_grad_batches",
)  # fmt: skip
OLD_SPLIT = "data.val_fraction"  # what older runs have in place of data.split
_missing = object()  # what stands for a key that `conf/` lacks
NUMBER = r"[-+]?(0x)?[\da-fA-F_:]+"  # whole, as YAML writes it
LARGEST, DEEPEST = 1 << 18, 20  # bytes and levels of a configuration


def groups_of_conf() -> set[str]:
    """The groups of `conf/` that a run chooses from: not Hydra's own."""
    return {folder.name for folder in CONF.iterdir() if folder.is_dir() and folder.name != "hydra"}


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


def check_choices(run: Path, chosen: Mapping[str, str | None]) -> None:
    """Refuse to go on with a run by other options than its own.

    Raises:
        UserError: one differs, or the record of them is damaged.
    """
    own = choices_of(run)
    for group in sorted(groups_of_conf()):
        if own and own.get(group) != chosen.get(group):
            raise UserError(f"resume goes on with the run's own {group}={own.get(group)}, not {chosen.get(group)}")


def composed(overrides: list[str]) -> DictConfig:
    """What Hydra composes of `conf/`."""
    if GlobalHydra.instance().is_initialized():
        return compose("train", overrides)
    with initialize_config_dir(str(CONF), **VERSION_BASE):
        return compose("train", overrides)


def store_config(cfg: DictConfig, run: Path) -> None:
    """Keep the configuration as it is now for the next time, and of a run that begins what it chose."""
    if cfg.resume:  # a text that was found by its hash: keep where it once was
        cfg, before = cfg.copy(), _leaves(_load(run / CONFIG)) or {}
        for key in (key for key in TEXTS if OmegaConf.select(cfg, key) is None):
            OmegaConf.update(cfg, key, before.get(key))
    files: dict[str, Any] = {CONFIG: cfg}
    if cfg.resume is None and HydraConfig.initialized():
        hydra = HydraConfig.get()
        files |= {CHOICES: OmegaConf.create({"hydra": hydra}), ".hydra/overrides.yaml": hydra.overrides.task}
    (run / CONFIG).parent.mkdir(exist_ok=True)
    for name, content in files.items():
        write_whole(run / name, OmegaConf.to_yaml(content).encode())


def _load(file: Path) -> Any:
    """A YAML file as plain containers, interpolations left as they stand.

    Raises:
        UserError: it is damaged, or no configuration that was written here: far too long or deep, or with aliases, by
            which a small file can describe a huge tree.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError("it is too long for a configuration")
        text = content.decode()
        depth = 0
        for event in yaml.parse(text):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST or isinstance(event, yaml.AliasEvent):
                raise ValueError("it is too deep for a configuration, or has aliases")
            if isinstance(event, yaml.ScalarEvent) and len(event.value) > 30 and re.fullmatch(NUMBER, event.value):
                raise ValueError("it has a number of more than 64 bits")
        return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))
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
    values = _values_of(run)
    parsed = OverridesParser.create().parse_overrides(overrides)
    said = dict.fromkeys(each.key_or_group for each in parsed if each.key_or_group not in {"resume", *groups_of_conf()})
    for key in said:
        for off in (key[: dot.start()] for dot in re.finditer(r"\.", key)):
            if off in values and values[off] is None:
                raise UserError(f"{run} has {off}=null, and what was switched off stays so: {key} has no place there")
    cfg, refused = _with_stored(cfg, values, said)
    if refused:
        had = ", ".join(f"{key}={values[key]}" for key in refused)
        mine = [each for each, one in zip(overrides, parsed, strict=True) if one.key_or_group in said]
        command = _command(run, [*mine, *_as_overrides(cfg, values, refused)])
        wholes = dict.fromkeys(".".join(key.split(".")[:2]) for key in refused)
        if any(_is_below(key, (*FIXED, OLD_SPLIT)) for key in refused):
            without = ""
        elif all(_null_leaves_out(cfg, key) for key in wholes):
            nulls = " ".join(f"{'' if _is_known(cfg, key) else '+'}{key}=null" for key in wholes)
            without = f" To go on without it, say {nulls}."
        else:
            without = f" To go on without it, remove it from {run / CONFIG}."
        raise UserError(
            f"{run} had {had}, which is not taken from a run's folder.{without}"
            f" To go on with it, say it again: {command}"
        )
    for key in (key for key in said if key not in TEXTS or OmegaConf.select(cfg, key) is not None):
        inside = [f"{name}={value}" for name, value in values.items() if _is_below(name, [key])]
        if key in values:
            _tell_change(key, _resolved(values, key), OmegaConf.select(cfg, key))
        elif not key.startswith("hydra.") and (not inside or OmegaConf.select(cfg, key) is None):
            log.info(f"Changed: {key}={OmegaConf.select(cfg, key)} (was {', '.join(inside) or 'not set'})")
    cfg.run_dir = str(run.absolute())
    return cfg


def command_to_go_on(run: Path) -> str:
    """The command line that goes on with a run of one's own: what is not taken from its folder is said in it."""
    try:
        values = _values_of(run)
        choices = [f"{group}={option}" for group, option in choices_of(run).items()]
        cfg, refused = _with_stored(composed(choices), values, ())
        return _command(run, _as_overrides(cfg, values, refused))
    except (UserError, HydraException, OmegaConfBaseException):  # options of somebody's own: --config-dir
        return _command(run, [])


def command_of_sweep(folder: Path, arguments: list[str] | None) -> str:
    """The command line that goes on with a sweep; empty where the sweep does not say what its arguments were."""
    if arguments is None:
        return ""
    return shlex.join(
        ["python", "train.py", "-m", "resume=allow", f"hydra.sweep.dir={as_value(str(folder))}", *arguments]
    )


def _values_of(run: Path) -> dict[str, Any]:
    values = _leaves(_load(run / CONFIG))
    if values is None:
        raise UserError(f"{run / CONFIG} is damaged: it is not a mapping of names")
    share = values.get(OLD_SPLIT)
    if isinstance(share, float) and "data.split" not in values:
        del values[OLD_SPLIT]
        values["data.split"] = [1 - share, share]
    return values


def _with_stored(cfg: DictConfig, values: dict[str, Any], said: Iterable[str]) -> tuple[DictConfig, list[str]]:
    """A configuration with the stored values that may be taken, and the keys of those that must be said again."""
    cfg = OmegaConf.create(cfg)  # the caller's stays as it is
    ours = _leaves(OmegaConf.to_container(cfg)) or {}  # as they stand, interpolations included
    left = {key: value for key, value in values.items() if not _is_below(key, {*OWN, *TEXTS, *said})}
    return cfg, [key for key, value in left.items() if not _adopt(cfg, key, value, ours.get(key, _missing))]


def _command(run: Path, overrides: Iterable[str]) -> str:
    folder = str(short(run))
    folder = f"./{folder}" if folder in ("auto", "allow", "null") else folder  # which stand for others
    return shlex.join(["python", "train.py", f"resume={folder}", *overrides])


def _as_overrides(cfg: DictConfig, values: dict[str, Any], keys: Iterable[str]) -> list[str]:
    """Stored values as overrides on a command line."""
    return [f"{'' if _is_known(cfg, key) else '+'}{key}={as_value(values[key])}" for key in keys]


def _null_leaves_out(cfg: DictConfig, key: str) -> bool:
    """Whether null for a key is as if it had never been said; other keys have defaults of their own."""
    group, _, name = key.partition(".")
    if group != "trainer":
        return group == "callbacks" and bool(name)
    from lightning.pytorch import Trainer  # takes seconds to import

    known = inspect.signature(Trainer).parameters
    return name in known and known[name].default is None and OmegaConf.select(cfg, key) is None


def as_value(value: Any) -> str:
    """A value as Hydra reads it on a command line."""
    if isinstance(value, list):
        return f"[{','.join(map(as_value, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{as_value(each)}" for key, each in value.items()) + "}"
    if not isinstance(value, str):
        return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    is_plain = re.fullmatch(r"(/|\./|[A-Za-z_])[\w./-]*", value, re.ASCII)
    if is_plain and value.lower() not in ("null", "true", "false", "nan", "inf"):
        return value
    # In quotes a quote is escaped, and so are the backslashes before it and before the end.
    doubled = re.sub(r"(?<!\\)(\\+)(?='|\Z)", r"\1\1", value)
    return "'" + doubled.replace("'", "\\'") + "'"


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


def _adopt(cfg: DictConfig, key: str, value: Any, ours: Any) -> bool:
    """Put a stored value into the configuration where that is harmless; whether nothing of it is lost.

    Harmless are numbers, booleans, null and lists of them, and text where `conf/` has text.
    """
    if value == ours and type(value) is type(ours):
        return True
    text, ours_text = isinstance(value, str), isinstance(ours, str)
    if text and key.endswith("._target_"):  # ours stands, also where the class has moved since
        return key == "trainer._target_" or (ours_text and ours.rpartition(".")[2] == value.rpartition(".")[2])
    if text and ours_text and "${" in ours:
        return "${" in value  # what hangs on another key still does, however it is written by now
    if text and (ours is _missing or "${" in value):
        return False
    if key in NOT_STORED or (text and key.startswith("trainer.logger.")):
        return False
    numbers = value if isinstance(value, list) else [value]
    if not text and not all(each is None or isinstance(each, int | float) for each in numbers):
        return False
    try:
        if not _is_known(cfg, key):
            return value is None
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    except OmegaConfBaseException:  # of another type than the key's
        return False
    return True


def _leaves(node: Any, path: str = "") -> dict[str, Any] | None:
    """The values in a tree of dicts by the path to each; None if it is no such tree. A value is also a list, and a dict
    that is empty or has other keys than names."""
    if not isinstance(node, dict) or not all(isinstance(name, str) and re.fullmatch(r"[\w-]+", name) for name in node):
        return {path: node} if path else None
    if not node and path:
        return {path: node}
    found: dict[str, Any] = {}
    for name, value in node.items():
        found |= _leaves(value, f"{path}.{name}" if path else name) or {}
    return found

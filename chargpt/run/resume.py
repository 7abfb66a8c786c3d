"""Going on with a run: its newest usable checkpoint, and its own configuration with what was changed now.

A run's folder may come from elsewhere. Its checkpoints are read as data (`weights_only=True`, every byte against its
checksum). Its configuration is composed anew from our own `conf/`, and what the folder says contributes values of known
keys: no class, no path of output and no interpolation is taken from it.
"""

import logging
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from chargpt.checkpoint import model_of, read_archive
from chargpt.corpus import Corpus
from chargpt.errors import UserError, first_line
from chargpt.model import MODEL_CONFIGS
from chargpt.optim import OPTIMIZER_CONFIGS
from chargpt.run.config import Settings
from chargpt.run.folder import CHECKPOINTS, CHOICES, CONFIG
from chargpt.settings import read_settings

log = logging.getLogger(__name__)

CONF = Path(__file__).parents[2] / "conf"
BEST = "best_val_loss.min_value"  # where a state of training has the lowest validation loss so far
OWN = ("run_dir", "resume")  # what stands here belongs to this start, not to the run
FIXED = (  # changing these would not go on with the run: weights, optimizer state and batches depend on them
    "model", "optimizer", "seed", "data.seed", "data.batch_size", "data.block_size", "data.val_fraction",
    "trainer.accumulate_grad_batches",
)  # fmt: skip


@dataclass(frozen=True)
class Resumption:
    """What a run goes on from.

    Attributes:
        checkpoint: the file with the state of training.
        step: optimizer steps taken.
        hyper_parameters: those of the `CharLM` that was saved.
        best: the lowest validation loss so far, in nats per character.
    """

    checkpoint: Path
    step: int
    hyper_parameters: dict[str, Any]
    best: float


def find_run(resume: str, outputs: str | Path = "outputs") -> Path:
    """The folder of the run to go on with: the one named, or for `auto` the newest with a usable checkpoint.

    Raises:
        UserError: there is none.
    """
    if resume != "auto":
        run = Path(resume)
        if not (run / CONFIG).is_file():
            raise UserError(f"{resume} is not the folder of a run: it has no {CONFIG}")
        return run
    found = [file for name in CHECKPOINTS for file in Path(outputs).rglob(name)]
    runs = dict.fromkeys(file.parents[1] for file in sorted(found, key=lambda file: -file.stat().st_mtime))
    for run in runs:
        if (run / CONFIG).is_file() and _newest_usable(run) is not None:
            return run
    raise UserError(f"resume=auto found no run with a usable checkpoint in {outputs}/")


def point_to_run(arguments: list[str]) -> list[str]:
    """The command line with `resume=` in full: the options that the run chose from `conf/`, what was said now, and the
    run's folder, which is also where the output goes.

    Raises:
        UserError: there is no such run, or the command line is that of a sweep, or chooses other options.
    """
    given = [argument for argument in arguments if argument.startswith("resume=")]
    if not given or given[-1] in ("resume=", "resume=null"):
        return arguments
    if "-m" in arguments or "--multirun" in arguments:
        raise UserError("a sweep cannot resume; resume its jobs one by one, resume=outputs/sweeps/...")
    run = find_run(_unquoted(given[-1].removeprefix("resume=")))
    quoted = "'" + str(run.absolute()).replace("'", "\\'") + "'"  # sweeps' folders have commas and equals signs
    rest = [argument for argument in arguments if argument not in given]
    choices = choices_of(run)
    for argument in rest:
        group, _, option = argument.lstrip("+").partition("=")
        if group in _groups() and option != choices.get(group):
            own = f"{group}={choices[group]}" if group in choices else group
            raise UserError(f"resume goes on with the run's own {own}: single values can be changed, not {argument}")
    return [
        *(f"{group}={option}" for group, option in choices.items()),
        *rest,
        f"resume={quoted}",
        f"hydra.run.dir={quoted}",
    ]


def _unquoted(value: str) -> str:
    """The value that Hydra reads: it is quoted for the other processes of a run on several devices."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1].replace(f"\\{value[0]}", value[0])
    return value


def choices_of(run: Path) -> dict[str, str]:
    """Which options the run chose from the groups of `conf/`.

    Raises:
        UserError: the record of them is damaged, or an option is not there.
    """
    if not (run / CHOICES).exists():
        return {}
    stored = _load(run / CHOICES)
    try:
        chosen = {
            group: option for group, option in stored["hydra"]["runtime"]["choices"].items() if group in _groups()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{run / CHOICES} is damaged: it does not say what was chosen") from error
    for group, option in chosen.items():
        if option is not None and str(option) not in {file.stem for file in (CONF / group).glob("*.yaml")}:
            raise UserError(f"the run chose {group}={option}, which is not in conf/{group}/")
    return {group: option for group, option in chosen.items() if option is not None}


def _load(file: Path) -> Any:
    """A YAML file as plain containers, interpolations left as they stand.

    Raises:
        UserError: it is damaged.
    """
    try:
        return OmegaConf.to_container(OmegaConf.load(file))
    except Exception as error:  # what a damaged or foreign file raises depends on the damage
        raise UserError(f"{file} is damaged: {first_line(error)}") from error


def _groups() -> set[str]:
    """The groups of `conf/`."""
    return {folder.name for folder in CONF.iterdir() if folder.is_dir()}


def load_state(run: Path) -> Resumption:
    """What the run goes on from: its last checkpoint, or the one before where the last is damaged.

    Raises:
        UserError: neither is usable.
    """
    usable = _newest_usable(run)
    if usable is None:
        raise UserError(f"{run} has no usable checkpoint to go on from ({' or '.join(CHECKPOINTS)})")
    file, checkpoint = usable
    best = float(checkpoint["state_dict"][BEST])
    return Resumption(file.absolute(), checkpoint["global_step"], checkpoint["hyper_parameters"], best)


def _newest_usable(run: Path) -> tuple[Path, dict[str, Any]] | None:
    for file in (run / name for name in CHECKPOINTS):
        if file.exists():
            try:
                return file, _read(file)
            except Exception as error:  # what a damaged file raises depends on the damage
                log.warning(f"Passing over {file}: it is damaged, or not a state of training ({type(error).__name__})")
    return None


def _read(file: Path) -> dict[str, Any]:
    checkpoint = read_archive(file)
    for key in ("loops", "optimizer_states", "lr_schedulers", "callbacks", "state_dict"):
        checkpoint[key]
    if type(checkpoint["global_step"]) is not int or type(checkpoint["hyper_parameters"]) is not dict:
        raise TypeError("not a state of training")
    model_of(checkpoint)
    float(checkpoint["state_dict"][BEST])
    checkpoint["hyper_parameters"]["corpus"]["sha256"]
    return checkpoint


def check_resumption(resumption: Resumption, settings: Settings, corpus: Corpus) -> None:
    """Refuse a state that is another model's, or was trained on another text, before a model is made.

    Raises:
        UserError: it is.
    """
    saved = resumption.hyper_parameters
    if saved["corpus"]["sha256"] != corpus.sha256:
        raise UserError(f"the text has changed since the run began: {corpus.name}; start a new run for it")
    try:
        model = read_settings("model", MODEL_CONFIGS, saved.get("model"))
        optimizer = read_settings("optimizer", OPTIMIZER_CONFIGS, saved.get("optimizer"), default="adamw")
    except UserError as error:
        raise UserError(f"{resumption.checkpoint} cannot be used: {error}") from error
    for key, before, now in (("model", model, settings.model), ("optimizer", optimizer, settings.optimizer)):
        if before != now:
            raise UserError(f"{resumption.checkpoint} was trained with another {key}: {before}")


def resumed_config(cfg: DictConfig, run: Path, overrides: list[str]) -> DictConfig:
    """The run's own configuration with today's overrides, each of which is told in the log.

    Args:
        cfg: as Hydra composed it of `conf/`, the run's choices and the overrides.
        overrides: as on the command line, `key=value`.

    Raises:
        UserError: an override cannot be honoured, or the run's configuration is damaged or has what must be said again.
    """
    try:
        values = dict(_leaves(_load(run / CONFIG)))
    except ValueError as error:
        raise UserError(f"{run / CONFIG} is damaged: {error}") from error
    parsed = [
        each
        for each in OverridesParser.create().parse_overrides(overrides)
        if each.key_or_group not in ("resume", *_groups())
    ]
    said = {each.key_or_group for each in parsed}
    cfg = OmegaConf.create(cfg)  # the caller's stays as it is
    unsaid = []
    for key, value in values.items():
        if any(key == each or key.startswith(f"{each}.") for each in (*OWN, *said)):
            continue
        if not _take(cfg, key, value):
            unsaid.append(key)
    if unsaid:
        had = ", ".join(f"{key}={values[key]}" for key in unsaid)
        again = " ".join(_said(cfg, key, values[key]) for key in unsaid)
        raise UserError(
            f"{run} had {had}, which is not taken from a run's folder. To go on with it, say it again:"
            f" python train.py {shlex.quote(f'resume={run}')} {again}"
        )
    for each in parsed:
        key = each.key_or_group
        before, after = _resolved(values, key), OmegaConf.select(cfg, key)
        if before is _missing or before == after:
            continue
        if any(key == fixed or key.startswith(f"{fixed}.") for fixed in FIXED):
            raise UserError(
                f"{key}={after} cannot be honoured: the run began with {key}={before}, on which its weights, its"
                " optimizer's state or its batches depend; start a new run for it"
            )
        log.info(f"Changed: {key}={after} (was {before})")
    cfg.run_dir = str(run.absolute())
    return cfg


def _said(cfg: DictConfig, key: str, value: Any) -> str:
    """A key and its value as typed in a shell."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    known = parent == "trainer" or (OmegaConf.is_dict(node) and name in node)
    return shlex.quote(f"{'' if known else '+'}{key}={value}")


_missing = object()


def _resolved(values: dict[str, Any], key: str) -> Any:
    """A stored value; of another key's where it only points there, as `data.seed` does to `seed`."""
    value = values.get(key, _missing)
    pointer = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
    return values.get(pointer[1], value) if pointer else value


def _take(cfg: DictConfig, key: str, value: Any) -> bool:
    """Put a stored value into the configuration where that is harmless; whether nothing of it is lost.

    Harmless are numbers, booleans, null and lists of them, and text where `conf/` has text that is neither a class nor
    where output goes.
    """
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    known = OmegaConf.is_dict(node) and name in node
    container: Any = OmegaConf.to_container(node) if known else {}  # as it stands, interpolations included
    ours = container.get(name)
    if known and value == ours:
        return True
    if isinstance(value, str):
        if name == "_target_":  # ours stands, also where the class has moved since
            return key == "trainer._target_" or str(ours).rpartition(".")[2] == value.rpartition(".")[2]
        if isinstance(ours, str) and "${" in ours:
            return "${" in value  # what hangs on another key still does, however it is written by now
        if not known or "${" in value or key.startswith("trainer.logger."):
            return False
    elif not all(
        each is None or isinstance(each, int | float) for each in (value if isinstance(value, list) else [value])
    ):
        return False
    try:
        # Without a plus the Trainer takes any argument, which is looked at later; elsewhere keys must be known.
        OmegaConf.update(cfg, key, value, merge=False, force_add=parent == "trainer")
    except (OmegaConfBaseException, AttributeError, KeyError):
        return False
    return True


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The values in a tree of dicts, each with the path to it; a list is a value.

    Raises:
        ValueError: it is no such tree.
    """
    if not isinstance(node, dict):
        raise ValueError("it is not a mapping")
    for name, value in node.items():
        if not isinstance(name, str):
            raise ValueError(f"{name!r} is not the name of a key")
        key = f"{path}.{name}" if path else name
        if isinstance(value, dict):
            yield from _leaves(value, key)
        else:
            yield key, value

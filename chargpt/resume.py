"""Going on with a run: its newest usable checkpoint, and its own configuration with what was changed now.

A run's folder may come from elsewhere. Its checkpoints are read as data (`weights_only=True`, every byte against its
checksum) and its configuration as YAML: classes that it names are made only if they are Lightning's or our own, and
paths that it names must lie in its folder.
"""

import logging
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from chargpt.config import MODEL_CONFIGS, TrainConfig
from chargpt.corpus import Corpus
from chargpt.errors import UserError

log = logging.getLogger(__name__)

CONFIG = ".hydra/config.yaml"
CHECKPOINTS = ("checkpoints/last.ckpt", "checkpoints/previous.ckpt")
TRUSTED = re.compile(r"lightning\.pytorch\.((callbacks|loggers)\.)?[A-Z]\w*|chargpt\.(callbacks|saving)\.[A-Z]\w*")
FIXED = (  # changing these would not go on with the run: weights, optimizer state and batches depend on them
    "model", "optimizer", "seed", "run_dir", "data.seed", "data.batch_size", "data.block_size", "data.val_fraction",
    "trainer.accumulate_grad_batches",
)  # fmt: skip
PATHS = ("dirpath", "save_dir", "default_root_dir", "root_dir", "run_dir")


@dataclass(frozen=True)
class Resumption:
    """What a run goes on from.

    Attributes:
        checkpoint: the file with the state of training.
        step: optimizer steps taken.
        hyper_parameters: those of the `CharLM` that was saved.
        best: the lowest validation loss so far.
    """

    checkpoint: Path
    step: int
    hyper_parameters: dict[str, Any]
    best: float


def find_run(resume: str, outputs: str = "outputs") -> Path:
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
    """The command line with `resume=` in full: the run's folder, which is also where the output goes.

    Raises:
        UserError: there is no such run, or the command line is that of a sweep.
    """
    given = [argument for argument in arguments if argument.startswith("resume=")]
    if not given or given[-1] in ("resume=", "resume=null"):
        return arguments
    if "-m" in arguments or "--multirun" in arguments:
        raise UserError("a sweep cannot resume; resume its jobs one by one, resume=outputs/sweeps/...")
    run = find_run(given[-1].removeprefix("resume=").strip("'\""))
    quoted = "'" + str(run.absolute()).replace("'", "\\'") + "'"  # sweeps' folders have commas and equals signs
    rest = [argument for argument in arguments if argument not in given]
    return [*rest, f"resume={quoted}", f"hydra.run.dir={quoted}"]


def load_state(run: Path) -> Resumption:
    """What the run goes on from: its last checkpoint, or the one before where the last is damaged.

    Raises:
        UserError: neither is usable.
    """
    usable = _newest_usable(run)
    if usable is None:
        raise UserError(f"{run} has no usable checkpoint to go on from ({' or '.join(CHECKPOINTS)})")
    file, checkpoint = usable
    best = float(checkpoint["state_dict"]["best_val_loss.min_value"])
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
    import torch

    from chargpt.checkpoint import check_archive, sizes_agree

    check_archive(file)
    checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    for key in ("loops", "optimizer_states", "lr_schedulers", "callbacks", "state_dict"):
        checkpoint[key]
    if type(checkpoint["global_step"]) is not int or type(checkpoint["hyper_parameters"]) is not dict:
        raise TypeError("not a state of training")
    settings = checkpoint["hyper_parameters"]
    weights = {name[4:]: value for name, value in checkpoint["state_dict"].items() if name.startswith("net.")}
    if not sizes_agree(settings["model"], len(settings["characters"]), weights):
        raise ValueError("the weights do not fit the settings")
    return checkpoint


def resumed_config(run: Path, overrides: list[str]) -> DictConfig:
    """The run's own configuration with today's overrides, each of which is told in the log.

    Args:
        overrides: as on the command line, `key=value`.

    Raises:
        UserError: an override cannot be honoured, or the configuration is damaged or not to be trusted.
    """
    cfg = _stored_config(run)
    given = set()
    for override in OverridesParser.create().parse_overrides(overrides):
        key = override.key_or_group
        if key == "resume":
            continue
        whole = OmegaConf.is_dict(OmegaConf.select(cfg, key)) and override.value() is not None
        if whole or override.type == OverrideType.DEL:
            raise UserError(
                f"resume goes on with the run's own {key}: single values can be changed, not {override.input_line}"
            )
        before = OmegaConf.select(cfg, key)
        try:
            OmegaConf.update(cfg, key, override.value(), force_add=override.type == OverrideType.ADD)
        except OmegaConfBaseException as error:
            raise UserError(f"{override.input_line}: {str(error).splitlines()[0]}") from error
        after = OmegaConf.select(cfg, key)
        if before != after:
            if any(key == fixed or key.startswith(f"{fixed}.") for fixed in FIXED):
                raise UserError(
                    f"{key}={after} cannot be honoured: the run began with {key}={before}, on which its weights, its"
                    " optimizer's state or its batches depend; start a new run for it"
                )
            log.info(f"Changed: {key}={after} (was {before})")
        given.add(key.split(".")[0] + "." + key.split(".")[1] if key.count(".") else key)
    OmegaConf.update(cfg, "run_dir", str(run.absolute()))
    _check_trust(cfg, run, given)
    return cfg


def check_resumption(resumption: Resumption, settings: dict[str, Any], corpus: Corpus) -> None:
    """Refuse a state that is another model's, or was trained on another text, before a model is made.

    Raises:
        UserError: it is.
    """
    saved = resumption.hyper_parameters
    if saved["corpus"].get("sha256") != corpus.sha256:
        raise UserError(f"the text has changed since the run began: {corpus.name}; start a new run for it")
    for key in ("model", "optimizer"):
        if saved.get(key) != settings[key]:
            raise UserError(f"{resumption.checkpoint} was trained with another {key}: {saved.get(key)}")


def store_config(cfg: DictConfig, run: Path) -> None:
    """Keep the configuration as it is now for the next time."""
    half = run / f"{CONFIG}.tmp"
    half.parent.mkdir(exist_ok=True)
    OmegaConf.save(cfg, half)
    os.replace(half, run / CONFIG)


def settle_events(run: Path) -> None:
    """Make earlier events sort before those to come, also when the clock has been set back since: TensorBoard reads a
    run's event files in the order of the second in their names."""
    files = {file: re.fullmatch(r"(events\.out\.tfevents\.)(\d+)(\..*)", file.name) for file in run.glob("*tfevents*")}
    seconds = [int(match[2]) for match in files.values() if match]
    ahead = max(seconds, default=0) - int(time.time()) + 1
    if ahead > 0:
        for file, match in files.items():
            if match:
                file.rename(run / f"{match[1]}{int(match[2]) - ahead}{match[3]}")


def _stored_config(run: Path) -> DictConfig:
    try:
        stored = OmegaConf.load(run / CONFIG)
        shape = OmegaConf.structured(TrainConfig)
        shape.model = OmegaConf.structured(MODEL_CONFIGS[stored.model.name])
        cfg = OmegaConf.merge(shape, stored)
    except Exception as error:  # YAML, keys and types each fail in a way of their own
        raise UserError(f"{run / CONFIG} is damaged: {str(error).splitlines()[0]}") from error
    OmegaConf.set_struct(cfg, True)
    return cfg


def _check_trust(cfg: DictConfig, run: Path, given: set[str]) -> None:
    for path, node in _nodes(OmegaConf.to_container(cfg, resolve=True), ""):
        if ".".join(path.split(".")[:2]) in given:
            continue  # said on the command line, by whoever sits there
        if "_target_" in node and not TRUSTED.fullmatch(str(node["_target_"])):
            raise UserError(f"{run / CONFIG} names other code than Lightning's and our own: {path}={node['_target_']}")
        for key in PATHS:
            if isinstance(node.get(key), str) and not Path(node[key]).resolve().is_relative_to(run.resolve()):
                raise UserError(f"{run / CONFIG} names a path outside the run's folder: {path}.{key}={node[key]}")


def _nodes(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every dict in a tree of plain containers, with the path to it."""
    if isinstance(node, dict):
        yield path, node
        for key, value in node.items():
            yield from _nodes(value, f"{path}.{key}".lstrip("."))
    elif isinstance(node, list):
        for value in node:
            yield from _nodes(value, path)

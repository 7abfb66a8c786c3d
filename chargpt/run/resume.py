"""Going on with a run: finding it, and its newest usable state of training.

A run's folder may come from elsewhere: checkpoints are read as data (`weights_only=True`, every byte against its
checksum), and `chargpt.run.stored` says what is taken of its configuration.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from chargpt.checkpoint import model_of, read_archive
from chargpt.corpus import Corpus
from chargpt.errors import UserError
from chargpt.model import ModelConfig
from chargpt.optim import OPTIMIZER_CONFIGS, OptimizerConfig
from chargpt.run.config import Settings
from chargpt.run.folder import CHECKPOINTS, CONFIG
from chargpt.run.stored import choices_of, groups_of_conf
from chargpt.settings import read_settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resumption:
    """What a run goes on from.

    Attributes:
        checkpoint: the file with the state of training.
        step: optimizer steps taken.
        best: the lowest validation loss so far, in nats per character.
        model, optimizer: the configurations that it was trained with.
        sha256: of the text that it was trained on.
    """

    checkpoint: Path
    step: int
    best: float
    model: ModelConfig
    optimizer: OptimizerConfig
    sha256: str


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
        if (run / CONFIG).is_file() and _newest_state(run) is not None:
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
    groups, choices = groups_of_conf(), choices_of(run)
    for argument in rest:
        group, _, option = argument.lstrip("+").partition("=")
        if group in groups and option != choices.get(group):
            own = f"{group}={choices[group]}" if group in choices else group
            raise UserError(f"resume goes on with the run's own {own}: single values can be changed, not {argument}")
    chosen = [f"{group}={option}" for group, option in choices.items()]
    return [*chosen, *rest, f"resume={quoted}", f"hydra.run.dir={quoted}"]


def _unquoted(value: str) -> str:
    """The value that Hydra reads: it is quoted for the other processes of a run on several devices."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1].replace(f"\\{value[0]}", value[0])
    return value


def load_state(run: Path) -> Resumption:
    """What the run goes on from: its last checkpoint, or the one before where the last is damaged.

    Raises:
        UserError: neither is usable.
    """
    state = _newest_state(run)
    if state is None:
        raise UserError(f"{run} has no usable checkpoint to go on from ({' or '.join(CHECKPOINTS)})")
    return state


def _newest_state(run: Path) -> Resumption | None:
    for file in (run / name for name in CHECKPOINTS):
        if file.exists():
            try:
                return _read(file)
            except Exception as error:  # what a damaged file raises depends on the damage
                log.warning(f"Passing over {file}: it is damaged, or not a state of training ({type(error).__name__})")
    return None


def _read(file: Path) -> Resumption:
    checkpoint = read_archive(file)
    for key in ("loops", "optimizer_states", "lr_schedulers", "callbacks"):
        checkpoint[key]
    if type(checkpoint["global_step"]) is not int:
        raise TypeError("not a state of training")
    model, _ = model_of(checkpoint)
    saved = checkpoint["hyper_parameters"]
    return Resumption(
        checkpoint=file.absolute(),
        step=checkpoint["global_step"],
        best=float(checkpoint["state_dict"]["best_val_loss.min_value"]),
        model=model,
        optimizer=read_settings("optimizer", OPTIMIZER_CONFIGS, saved["optimizer"], default="adamw"),
        sha256=saved["corpus"]["sha256"],
    )


def check_resumption(resumption: Resumption, settings: Settings, corpus: Corpus) -> None:
    """Refuse a state that is another model's, or was trained on another text, before a model is made.

    Raises:
        UserError: it is.
    """
    if resumption.sha256 != corpus.sha256:
        raise UserError(f"the text has changed since the run began: {corpus.name}; start a new run for it")
    for key in ("model", "optimizer"):
        before = getattr(resumption, key)
        if before != getattr(settings, key):
            raise UserError(f"{resumption.checkpoint} was trained with another {key}: {before}")

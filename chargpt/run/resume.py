"""Going on with a run: finding it, and its newest usable state of training.

A run's folder may come from elsewhere: checkpoints are read as data, by `chargpt.pickled`, `chargpt.run.stored` says
what is taken of its configuration, and nothing in it leads out of it.
"""

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from chargpt.checkpoint import model_in, read_archive, scoring_in, text_in
from chargpt.errors import UserError, first_line, is_out_of_memory
from chargpt.jobs import SWEEP, read_plan
from chargpt.model import ModelConfig
from chargpt.optim import OPTIMIZER_CONFIGS, OptimizerConfig
from chargpt.run.config import Settings, read_config
from chargpt.run.folder import CHECKPOINTS, CONFIG, check_contents, has_state, short
from chargpt.run.stored import as_value, choices_of, command_of_sweep, composed, groups_of_conf, resumed_config
from chargpt.settings import MOST_STEPS, read_settings
from chargpt.tokenizer import tokenizer_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resumption:
    """What a run goes on from.

    Attributes:
        checkpoint: the file with the state of training.
        state: what was read from it.
        step: optimizer steps taken.
        best: the lowest validation loss so far, in nats per id.
        model, optimizer: the configurations that it was trained with.
        text: the `name` and the `sha256` of the text that it was trained on, and `val_name` and so on of its others.
        characters: the model's vocabulary; None for bytes.
        split: of the text; None where the state does not say.
    """

    checkpoint: Path
    state: dict[str, Any]
    step: int
    best: float
    model: ModelConfig
    optimizer: OptimizerConfig
    text: dict[str, str]
    characters: str | None
    split: list[float] | None


def point_to_run(arguments: list[str], outputs: str | Path = "outputs") -> list[str]:
    """The command line with `resume=` in full: the options that the run chose from `conf/`, what was said now, and the
    run's folder, which is also where the output goes. `resume=allow` begins a run where there is none yet.

    Args:
        outputs: where `resume=auto` looks.

    Raises:
        UserError: there is no such run, or the command line is that of a sweep, or chooses other options.
    """
    for argument in arguments:
        if argument.startswith("--e"):
            raise UserError("resume= goes on with a run; Hydra's --experimental-rerun would run whatever a file says")
        if any("\ud800" <= char <= "\udfff" for char in argument):
            raise UserError(f"this argument is not UTF-8: {argument!r}")
    initial, rest = _split(arguments, "init_from")
    if initial and "${" not in initial and initial != "null":  # the names of a sweep's runs need quotes
        arguments = [*rest, f"init_from={as_value(initial)}"]
    resume, rest = _split(arguments, "resume")
    if resume in (None, "null"):
        return arguments
    if not resume:
        raise UserError("resume= is empty: it takes a run's folder, auto (the newest that can go on) or allow")
    if any(argument == "-m" or argument.startswith("--m") for argument in rest):
        return _sweep_to_go_on(arguments, resume)
    folder, others = _split(rest, "hydra.run.dir")
    if resume == "auto":
        run = _newest_run(others, Path(outputs))
    elif resume == "allow":
        if not folder or "${" in folder:
            raise UserError("resume=allow needs a folder to begin a run in, or to go on with it: hydra.run.dir=...")
        run = Path(folder)
        if not has_state(run):
            if run.exists():
                check_contents(run)
            return [*rest, "resume=null"]
        _, others = _split(others, "init_from")  # from where it began; it goes on from its own weights
    else:
        run = Path(resume)
        if not run.exists():
            raise UserError(f"there is no folder {resume}; resume=auto takes the newest run that can go on")
    run = Path(os.path.realpath(run))  # as Hydra would have it, too
    if not (run / CONFIG).is_file():
        if (run / SWEEP).is_file():
            _sweep_to_go_on([], resume)
        around = next((f"resume={short(parent)}" for parent in run.parents if (parent / CONFIG).is_file()), None)
        hint = f"did you mean {around}?" if around else "resume=auto takes the newest run that can go on"
        raise UserError(f"{short(run)} is not the folder of a run; {hint}")
    check_contents(run)
    if folder and Path(os.path.realpath(folder)) != run:
        raise UserError(f"a run goes on in its own folder, {run}, not in hydra.run.dir={folder}")
    place = as_value(str(run))
    return [*_with_choices(run, others), f"resume={place}", f"hydra.run.dir={place}"]


def _sweep_to_go_on(arguments: list[str], resume: str) -> list[str]:
    """The command line of a sweep that may have begun before: each job finds out by itself whether it has.

    What is swept must be said again. A sweep's folder may come from elsewhere, and its command could be anything.
    """
    if resume == "auto":
        raise UserError("resume=auto looks for a run; a sweep goes on by resume=allow hydra.sweep.dir=...")
    if resume != "allow":
        command = command_of_sweep(Path(resume), read_plan(Path(resume)).arguments)
        again = f": {command}" if command else ", with the rest as before"
        raise UserError(f"a sweep goes on by resume=allow hydra.sweep.dir={resume}{again}")
    folder, _ = _split(arguments, "hydra.sweep.dir")
    if not folder or "${" in folder:
        raise UserError("resume=allow needs a folder to begin a sweep in, or to go on with it: hydra.sweep.dir=...")
    return arguments


def _split(arguments: list[str], key: str) -> tuple[str | None, list[str]]:
    """The last value that is given to a key, or None, and the other arguments."""
    given = [each for each in arguments if re.match(rf"\+{{0,2}}{re.escape(key)}=", each)]
    rest = [each for each in arguments if each not in given]
    return (_unquoted(given[-1].partition("=")[2]), rest) if given else (None, rest)


def _unquoted(value: str) -> str:
    """The value that Hydra reads: it is quoted for the other processes of a run on several devices."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" and not Path(value).exists():
        return re.sub(rf"(\\+)({value[0]}|\Z)", lambda found: "\\" * (len(found[1]) // 2) + found[2], value[1:-1])
    return value


def _with_choices(run: Path, rest: list[str]) -> list[str]:
    """The options that a run chose, and the other arguments, which choose no others."""
    groups, choices = groups_of_conf(), choices_of(run)
    for argument in rest:
        group = re.split("[@:=]", argument.lstrip("+~"))[0]
        if group in groups and argument != f"{group}={choices.get(group)}":
            own = f"{group}={choices[group]}" if group in choices else group
            raise UserError(f"resume goes on with the run's own {own}: single values can be changed, not {argument}")
    return [*(f"{group}={option}" for group, option in choices.items()), *rest]


def _newest_run(rest: list[str], outputs: Path) -> Path:
    """The newest run that these arguments can go on with; says on what others it passed over.

    Raises:
        UserError: there is none.
    """
    found = [file for name in CHECKPOINTS for file in outputs.rglob(name)]
    runs = dict.fromkeys(file.parents[1] for file in sorted(found, key=lambda file: -file.lstat().st_mtime))
    overrides = [argument for argument in rest if not argument.startswith("-")]
    for run in runs:
        try:
            check_contents(run)
            state = load_state(run)
            said = _with_choices(run, overrides)
            cfg = composed([each for each in said if not each.startswith("hydra.")])
            settings = read_config(resumed_config(cfg, run, said))
            check_resumption(state, settings)
            if state.step >= (max_steps := settings.trainer["max_steps"]):
                raise UserError(f"finished, {state.step} steps; trainer.max_steps={max_steps} is no larger")
        except Exception as error:  # whatever is wrong with this one, another may be right
            why = str(error) if isinstance(error, UserError) else first_line(error)
            log.warning(f"Passing over {run}: {why.removeprefix(f'{run} ')}")
        else:
            return run
    raise UserError(f"resume=auto found no run to go on with in {outputs}/")


def load_state(run: Path) -> Resumption:
    """What the run goes on from: its last checkpoint, or the one before where the last is damaged.

    Raises:
        UserError: neither is usable.
    """
    files = [file for name in CHECKPOINTS if (file := run / name).exists()]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} is in the way: it is no file")
    for file in files:
        try:
            return _read(file, run)
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from error
        except Exception as error:  # what a damaged file raises depends on the damage
            if is_out_of_memory(error):
                raise
            why = error if isinstance(error, UserError) else type(error).__name__
            log.warning(f"Passing over {file}: it is damaged, or not a state of training ({why})")
    if files:
        raise UserError(f"{run} has no usable checkpoint to go on from ({' or '.join(CHECKPOINTS)})")
    raise UserError(
        f"{run} ended before its first save, or has lost it: there is nothing to go on from. The command that began it,"
        f" with hydra.run.dir={as_value(str(run))}, begins it again in this folder, and writes over what is there"
    )


def _read(file: Path, run: Path) -> Resumption:
    state = read_archive(file)
    [_] = state["optimizer_states"]
    if not _is_of_counts(state["loops"]):
        raise TypeError("not a state of training")
    state["lr_schedulers"] = []  # they follow from the step and the settings
    step, saved = state["global_step"], state["hyper_parameters"]
    if (
        type(step) is not int
        or not 0 <= step < MOST_STEPS
        or not re.fullmatch(r"[\w.+-]{1,40}", state["pytorch-lightning_version"])
    ):
        raise TypeError("not a state of training")
    model = model_in(state)
    if "current_model_state" in state:
        _check_averaging(state)
    state["callbacks"] = dict(_given_back(state["callbacks"], run))
    return Resumption(
        checkpoint=file.absolute(),
        state=state,
        step=step,
        best=_best_loss(state["state_dict"]["best_val_loss.min_value"]),
        model=model.config,
        optimizer=read_settings("optimizer", OPTIMIZER_CONFIGS, saved["optimizer"], default="adamw"),
        text=text_in(state),
        characters=tokenizer_of(saved["characters"]).characters,
        split=scoring_in(saved["scoring"]).split if saved.get("scoring") else None,
    )


def _check_averaging(state: dict[str, Any]) -> None:
    """Take no more than the weights in training, the best loss and a count from a state whose `state_dict` has the
    weights' average.

    Raises:
        Exception: they are not what `Averaging` wrote; of which kind depends on what they are.
    """
    weights = {name: value for name, value in state["current_model_state"].items() if name.startswith("net.")}
    model_in(state | {"state_dict": weights})
    count = state["averaging_state"]["n_averaged"]
    if count.shape or count.is_floating_point() or not 0 <= count < MOST_STEPS:
        raise TypeError("not a count")
    best = "best_val_loss.min_value"  # which Lightning's own callbacks do not keep up to date in the average
    state["state_dict"][best] = state["current_model_state"][best]
    state["current_model_state"] = state["state_dict"] | weights
    state["averaging_state"] = {"n_averaged": count}


def _best_loss(value: Any) -> float:
    """The lowest validation loss so far, in nats per id; infinite where there was none."""
    if not isinstance(value, Tensor) or value.shape or not value.is_floating_point() or not value >= 0:
        raise TypeError("not a loss")
    return float(value)


def _is_of_counts(loops: Any) -> bool:
    """Whether the state of Lightning's loops is made of counts, as it is."""
    return all(map(_is_of_counts, loops.values())) if isinstance(loops, dict) else isinstance(loops, int)


def _given_back(states: dict[str, Any], run: Path) -> Iterator[tuple[str, Any]]:
    """The states of callbacks that may be restored.

    Not that of a time limit, which counts anew at each start. And none with the path of something outside the run's
    folder, which a callback may remove as if it had made it: `ModelCheckpoint` does, of a run that was copied, say.
    """
    for name, state in states.items():
        if not name.isprintable() or name.startswith("Timer"):
            continue
        if (path := next(_paths_outside(state, os.path.realpath(run)), None)) is None:
            yield name, state
        else:
            said = f"it has the path of something outside {run}: {path}"
            log.warning(f"The state of {name} is left out: {said}")


def _paths_outside(state: Any, folder: str) -> Iterator[str]:
    if isinstance(state, str):
        leads_on = "::" in state or "://" in state or state.startswith("~")  # to libraries that may be asked
        if leads_on or (os.path.lexists(state) and not Path(os.path.realpath(state)).is_relative_to(folder)):
            yield state
    elif isinstance(state, dict | list | tuple | set):
        for each in state:
            yield from _paths_outside(each, folder)
            if isinstance(state, dict):
                yield from _paths_outside(state[each], folder)


def check_resumption(resumption: Resumption, settings: Settings) -> None:
    """Refuse a state that is another model's, before a model is made.

    Raises:
        UserError: it is.
    """
    for key in ("model", "optimizer"):
        before = getattr(resumption, key)
        if before != getattr(settings, key):
            raise UserError(f"{short(resumption.checkpoint)} was trained with another {key}: {before}")
    if tokenizer_of(resumption.characters).kind != settings.data.tokenizer:
        raise UserError(f"{short(resumption.checkpoint)} was trained with another data.tokenizer")
    if resumption.split not in (None, settings.data.split):
        raise UserError(f"{short(resumption.checkpoint)} was trained with another data.split: {resumption.split}")

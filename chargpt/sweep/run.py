"""Several runs by one command (`--multirun`): how a sweep begins and ends, and one of its jobs."""

import hashlib
import itertools
import logging
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, ListConfig, OmegaConf

from chargpt import errors
from chargpt.errors import UserError, tell
from chargpt.history import SWEEP
from chargpt.run import devices
from chargpt.run.config import hydra_errors, with_quoted_paths
from chargpt.run.folder import check_contents, has_state, held
from chargpt.run.resume import load_state
from chargpt.sweep.compare import report, save
from chargpt.sweep.records import Job, Plan, read_jobs, read_plan, read_sweep

ONE_DEVICE = "a sweep trains each job on one device: its other processes would each sweep again"

_ending = ExitStack()  # closed when the command ends


@contextmanager
def reported() -> Iterator[None]:
    """A sweep that begins inside is reported at the end; the status is 1 if some of its jobs did not finish."""
    with _ending:
        yield


class RecordSweep(Callback):
    """Begins a sweep, before the first job."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        try:
            with hydra_errors():
                _ending.enter_context(_sweep(config))
        except Exception as error:
            raise SystemExit(devices.report(error)) from error  # Hydra would make a warning of a callback's exception


@contextmanager
def _sweep(config: DictConfig) -> Iterator[None]:
    """Refuse what cannot be swept, write `sweep.json`, hold the folder while the jobs run, and compare them at the end.
    The status is 1 if some did not finish."""
    folder, n_trials = Path(config.hydra.sweep.dir), config.hydra.sweeper.get("n_trials")  # of a search by Optuna
    if devices.number_of_devices(config.trainer) > 1 or (devices.launched() or 1) > 1:
        raise UserError(ONE_DEVICE)
    swept = _swept(config)
    if "data.tokenizer" in swept:
        raise UserError("a sweep compares losses, and those per byte do not compare with those per character")
    check_contents(folder)
    with held(folder):
        before, plan = {job.identity for job in read_jobs(folder)}, read_plan(folder)
        if before and config.resume != "allow":
            raise UserError(f"{folder} holds a sweep already; resume=allow resumes it")
        for name in (SWEEP, "multirun.yaml", "table.csv", "sweep.png"):
            if (folder / name).exists() and not before and plan is None:
                raise UserError(f"{folder} has a {name} but no sweep; hydra.sweep.dir=... names another folder")
        asked = set() if n_trials else _grid(swept)
        words = [_as_typed(each) for each in sys.argv[1:] if not re.match(r"-m$|--m|resume=|hydra\.sweep\.dir=", each)]
        plan = Plan(list(swept), n_trials or len(asked), len(before - asked), words)
        plan.write(folder)
        tell(f"{plan.jobs} job{'s' * (plan.jobs != 1)} in {folder}; the lines of each are in its train.log")
        try:
            yield
        finally:
            sweep = read_sweep(folder)
            if sweep.jobs or isinstance(sys.exception(), KeyboardInterrupt):  # else something is wrong with all
                tell(f"\n{report(sweep)}")
                save(sweep)
        asked = asked or {job.identity for job in sweep.jobs} - before
        if missing := len(asked - {job.identity for job in sweep.jobs if job.state == "finished"}):
            sys.exit(f"error: {missing} of {plan.jobs} jobs did not finish")


def _swept(config: DictConfig) -> dict[str, Override]:
    """The overrides of several values, by key: of those typed for one key, the last counts."""
    searched = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    typed: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())  # which knows what glob(...) finds
    last = {each.key_or_group: each for each in parser.parse_overrides([*searched, *typed])}
    return {key: each for key, each in last.items() if each.is_sweep_override()}


def _grid(swept: dict[str, Override]) -> set[str]:
    """The identities of the jobs of a grid."""
    choices = []
    for key, override in swept.items():
        singles = [f"{key}={value}" for value in override.sweep_string_iterator()]
        if not singles:
            line = override.input_line
            raise UserError(f"{line} has no values: glob(...) takes names of files in conf/; commas separate values")
        choices.append(OverridesParser.create().parse_overrides(singles))
    return {Job(Path(), 0, _values(combination)).identity for combination in itertools.product(*choices)}


def _as_typed(argument: str) -> str:
    """Without the quotes that a path got on the way to Hydra: the shell's quotes would come around them."""
    key, _, value = argument.partition("=")
    bare = f"{key}={value[1:-1]}"
    return bare if with_quoted_paths([bare]) == [argument] else argument


def run_job(cfg: DictConfig, run: Callable[[DictConfig], float]) -> float:
    """A job of a sweep: its lines go to its log, and one line on the terminal shows how it went. If it fails, the sweep
    goes on, and its loss is infinite, since a search needs a number."""
    hydra = HydraConfig.get()
    folder, sweep = Path(hydra.runtime.output_dir), Path(hydra.runtime.cwd, hydra.sweep.dir)
    job = Job(folder, hydra.job.num, swept_values(sweep, hydra.overrides.task))
    others = [each for each in read_jobs(sweep) if each.folder.name == folder.name and each.identity != job.identity]
    curve = job.curve
    for handler in logging.getLogger().handlers[:]:
        if not isinstance(handler, logging.FileHandler):
            logging.getLogger().removeHandler(handler)
    try:
        if others:
            raise UserError(f"{folder} holds the job {others[0].title}: hydra.sweep.subdir has to depend on each value")
        job.write()
        if devices.number_of_devices(cfg.trainer) > 1:
            raise UserError(ONE_DEVICE)
        with hydra_errors():
            run(cfg)
        job = replace(job, finished=_has_finished(folder, cfg.trainer))
    except Exception as raised:
        errors.report(raised)
        job = replace(job, error=errors.in_words(raised))
    if not others:
        job.write()
    went = "not validated"
    if job.error:
        went = f"failed: {job.error}"
    elif job.best:
        went = f"val loss {job.loss:.4f} at step {job.best.step:,}, {job.curve[-1].seconds:,.0f} s"
        went += ("" if job.curve != curve else ", finished before") if job.finished else ", not finished (a time limit)"
    plan = read_plan(sweep)
    tell(f"{job.number + 1} of {plan.jobs if plan else '?'}: {job.title or 'the defaults'}: {went}")
    return math.inf if job.error else job.loss


def _has_finished(folder: Path, trainer: DictConfig) -> bool:
    """Whether a run that ended without an error is complete: not so if it reached a time limit before its length."""
    if not trainer.get("max_time"):
        return True
    state = load_state(folder) if has_state(folder) else None
    return state is not None and (state.stopped_early or state.step >= trainer.max_steps)


def job_folder(sweep: str, number: int, overrides: ListConfig) -> str:
    """The name of a job's folder: its number and its swept values. A job of an earlier start with the same values keeps
    its folder, even if its number was another."""
    job = Job(Path(sweep), number, swept_values(Path(sweep), overrides))
    before = {each.folder.name: each.identity for each in read_jobs(Path(sweep))}
    name = f"{number}_{folder_name(job.title.replace(', ', ','))}"
    if name in before:  # values that look alike
        name += f"-{hashlib.sha256(job.identity.encode()).hexdigest()[:8]}"
    return next((folder for folder, identity in before.items() if identity == job.identity), name)


OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)  # for conf/train.yaml


def folder_name(text: str) -> str:
    """A text as the name of one folder: without separators, and short enough for file systems."""
    name = re.sub(r"[^\w.,=+-]", "_", text).strip(".") or "defaults"
    if len(name.encode()) <= 200:
        return name
    return f"{name.encode()[:190].decode(errors='ignore')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def swept_values(sweep: Path, overrides: Iterable[str]) -> dict[str, Any]:
    """The values of the swept keys among a job's overrides; of all keys if `hydra.callbacks` lacks `RecordSweep`."""
    plan, parsed = read_plan(sweep), OverridesParser.create().parse_overrides(list(overrides))
    return _values(each for each in parsed if plan is None or each.key_or_group in plan.swept)


def _values(overrides: Iterable[Override]) -> dict[str, Any]:
    values = {each.key_or_group: (each.value(), each.get_value_element_as_str()) for each in overrides}
    return {
        key: value if isinstance(value, int | float | str | None) else text for key, (value, text) in values.items()
    }

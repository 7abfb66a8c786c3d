"""Several runs by one command (`--multirun`): how a sweep begins and ends, and one of its jobs."""

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
from chargpt.compare import Sweep, read_sweep, report, save
from chargpt.errors import UserError, tell
from chargpt.history import SWEEP, Job, Plan, best_of, read_job, read_losses, read_plan, write_record
from chargpt.run import devices
from chargpt.run.config import hydra_errors
from chargpt.run.folder import check_contents, held
from chargpt.run.resume import CONFIG

ONE_DEVICE = "each job of a sweep takes one device (trainer.devices=1): further processes would start the sweep again"
MAY_CHANGE = r"hydra|trainer\.(?!precision|gradient_clip|accumulate)|callbacks"  # between two starts
typed: list[str] = []  # the command line before `resume=` was written out and paths were quoted
ending = ExitStack()  # closed however the command ends; Hydra's hook at the end runs only after a success


class RecordSweep(Callback):
    """Begins a sweep, before the first job."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        try:
            with hydra_errors():
                ending.enter_context(sweeping(config))
        except Exception as error:
            raise SystemExit(devices.report(error)) from error  # Hydra would make a warning of a callback's exception


@contextmanager
def sweeping(config: DictConfig) -> Iterator[None]:
    """Hold the folder of a sweep while its jobs run, and compare them at the end; the status is 1 if some did not
    finish."""
    folder = Path(config.hydra.sweep.dir)
    if (devices.launched() or 1) > 1:
        raise UserError(ONE_DEVICE)
    check_contents(folder)
    with held(folder):
        sweep = read_sweep(folder)
        if sweep.results and config.resume != "allow":
            raise UserError(f"{folder} holds a sweep already: add resume=allow to resume it")
        if not sweep.size and {each.name for each in folder.iterdir()} - {".lock", "multirun.yaml"}:
            raise UserError(f"{folder} has files but no sweep: choose another folder with hydra.sweep.dir=...")
        plan = _plan(config, sweep)
        write_record(folder, plan)
        tell(f"{plan.jobs} job{'s' * (plan.jobs != 1)} in {folder}; the lines of each are in its train.log")
        try:
            yield
        finally:
            sweep = read_sweep(folder)
            if sweep.results:
                tell(f"\n{report(sweep)}")
                save(sweep)
            else:  # something is wrong with all jobs: nothing to resume
                (folder / SWEEP).unlink()
    if missing := len(sweep.results) - sweep.finished:
        sys.exit(f"error: {missing} of {sweep.size} jobs did not finish")


def _plan(config: DictConfig, sweep: Sweep) -> Plan:
    """How a sweep starts. The keys that tell its jobs apart are those swept now or at an earlier start, and those whose
    single value has changed since the last one. Records of earlier jobs are completed with their values of these keys.
    """
    overrides = _overrides(config)
    swept = {key: each for key, each in overrides.items() if each.is_sweep_override()}
    if "data.tokenizer" in swept:
        raise UserError("a sweep compares losses, and those per byte do not compare with those per character")
    n_trials = config.hydra.sweeper.get("n_trials")  # of a search by Optuna
    number = n_trials or math.prod(len(list(each.sweep_string_iterator())) for each in swept.values())
    if not number:
        raise UserError("a key has no values: glob(...) takes names of files in conf/; commas separate values")
    fixed = {key: str(overrides[key].input_line) for key in sorted(overrides.keys() - swept - {"resume"})}
    before = sweep.plan.fixed if sweep.results else fixed
    may_differ = [key for key in sorted({*fixed, *before}) if not re.match(MAY_CHANGE, key)]
    changed = [key for key in may_differ if fixed.get(key) != before.get(key)]
    keys = list(dict.fromkeys([*sweep.plan.swept, *swept, *changed]))
    for folder, job, *_ in sweep.results:
        missing = [key for key in keys if key not in job.values]
        if missing and (file := folder / CONFIG).exists():
            options = {key: before[key].partition("=")[2] for key in missing if key in before}  # of groups
            write_record(folder, replace(job, values=job.values | options | _values(OmegaConf.load(file), missing)))
    words = [each for each in typed if not re.match(r"-m$|--m|resume=|hydra\.sweep\.dir=", each)]
    return Plan(keys, number, words, fixed, _values(config, [key for key in keys if key not in overrides]))


def _values(config: Any, keys: Iterable[str]) -> dict[str, Any]:
    """The plain values that a configuration has for keys."""
    found = {key: OmegaConf.select(config, key, default=...) for key in keys}
    return {key: value for key, value in found.items() if isinstance(value, int | float | str | None)}


def _overrides(config: DictConfig) -> dict[str, Override]:
    """All overrides by key: of those typed for one key, the last counts."""
    searched = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    task: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())  # which knows what glob(...) finds
    return {each.key_or_group: each for each in parser.parse_overrides([*searched, *task])}


def run_job(cfg: DictConfig, run: Callable[[DictConfig], tuple[float, bool]]) -> float:
    """Run one job, which logs to its own file and prints one line; returns its loss. A failed job returns infinity, so
    that a search can go on."""
    hydra = HydraConfig.get()
    folder, plan = Path(hydra.runtime.output_dir), read_plan(Path(hydra.runtime.cwd, hydra.sweep.dir))
    job = Job(hydra.job.num, _swept_values(plan, hydra.overrides.task))
    if (before := read_job(folder)) and before.identity != job.identity:
        raise UserError(f"{folder} holds the job {before.title}: hydra.sweep.subdir has to depend on each value")
    if devices.number_of_devices(cfg.trainer) > 1:
        raise UserError(ONE_DEVICE)
    for handler in logging.getLogger().handlers[:]:
        if not isinstance(handler, logging.FileHandler):
            logging.getLogger().removeHandler(handler)
    write_record(folder, before or job)  # an earlier record stays until the job trains on
    loss = math.inf
    try:
        with hydra_errors():
            loss, _ = run(cfg)
    except Exception as raised:
        errors.report(raised)
        write_record(folder, replace(job, error=errors.in_words(raised)))
    job = read_job(folder) or job
    went = job.state
    if (best := best_of(curve := read_losses(folder))) and not job.error:
        went = f"val loss {best.val_loss:.4f} at step {best.step:,}, {curve[-1].seconds:,.0f} s, {went}"
    tell(f"{hydra.job.num + 1} of {plan.jobs}: {job.title}: {went}")
    return loss


def job_folder(sweep: str, number: int, overrides: ListConfig) -> str:
    """The name of a job's folder: its number and its swept values. A job of an earlier start with the same values keeps
    its folder, even if its number was another."""
    found = read_sweep(Path(sweep))
    job = Job(number, _swept_values(found.plan, overrides))
    before = {each.job.identity: each.folder.name for each in found.results}
    plain = re.sub(r"[^\w.,=+-]", "_", f"{number}_{job.title.replace(', ', ',')}").encode()
    return before.get(job.identity, plain[:190].decode(errors="ignore"))  # file systems take 255


OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)  # for conf/train.yaml


def _swept_values(plan: Plan, overrides: Iterable[str]) -> dict[str, Any]:
    """The values of the swept keys among a job's overrides: numbers, booleans, null, or text."""
    values = dict(plan.defaults)
    for each in OverridesParser.create().parse_overrides(list(overrides)):
        if each.key_or_group in plan.swept:
            value = each.value()
            is_plain = isinstance(value, int | float | str | None)
            values[each.key_or_group] = value if is_plain else each.get_value_element_as_str()
    return values

"""Several runs by one command (`--multirun`): how they begin, and what their folders are called."""

import glob
import hashlib
import math
import re
import sys
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, ListConfig

from chargpt.errors import UserError, tell
from chargpt.run import devices
from chargpt.run.folder import check_contents
from chargpt.sweep.compare import report, save
from chargpt.sweep.records import JOB, SWEEP, Job, Plan, read_job, read_plan, read_sweep

ONE_DEVICE = "a sweep trains each job on one device: its other processes would each sweep again"


class RecordSweep(Callback):
    """Refuses what cannot be swept, and writes `sweep.json`, before the first job.

    Attributes:
        folder: that of the sweep which this process started.
    """

    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        try:
            self._begin(config)
        except (UserError, OSError) as error:
            raise SystemExit(devices.report(error)) from error  # Hydra would make a warning of a callback's exception

    def _begin(self, config: DictConfig) -> None:
        hydra, folder = config.hydra, Path(config.hydra.sweep.dir)
        check_folder(folder, goes_on=config.resume == "allow")
        if devices.number_of_devices(config.trainer) > 1 or (devices.launched() or ("", 1))[1] > 1:
            raise UserError(ONE_DEVICE)
        searched = [f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()]
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())  # which knows what glob(...) finds
        overrides = parser.parse_overrides([*searched, *hydra.overrides.task])
        last = {each.key_or_group: each for each in overrides}
        swept = {key: each for key, each in last.items() if each.is_sweep_override()}
        if "data.tokenizer" in swept:
            raise UserError("a sweep compares losses, and those per byte do not compare with those per character")
        jobs = hydra.sweeper.get("n_trials") or math.prod(map(_values_of, swept.values()))
        fixed = [str(each.input_line) for each in overrides if each.key_or_group not in (*swept, "resume")]
        hydras = [each for each in hydra.overrides.hydra if not each.startswith(("hydra.sweep.dir=", "hydra.mode="))]
        task = [each for each in hydra.overrides.task if not each.startswith("resume=")]
        plan = Plan(uuid.uuid4().hex, jobs, list(swept), fixed, [*hydras, *task])
        folder.mkdir(parents=True, exist_ok=True)
        plan.write(folder)
        RecordSweep.folder = folder
        tell(f"{jobs} job{'s' * (jobs != 1)} in {folder}; the lines of each are in its train.log")


@contextmanager
def reported() -> Iterator[None]:
    """After what is inside, which may be a sweep, compare its jobs; the status is 1 if some did not finish."""
    try:
        yield
    finally:
        folder, RecordSweep.folder = RecordSweep.folder, None
        sweep = read_sweep(folder) if folder else None
        if sweep and (sweep.jobs or isinstance(sys.exception(), KeyboardInterrupt)):  # else something is wrong with all
            tell(f"\n{report(sweep)}")
            save(sweep)
    if sweep and sweep.unfinished:
        sys.exit(f"error: {sweep.unfinished} of {sweep.plan.jobs} jobs did not finish")


def check_folder(folder: Path, *, goes_on: bool) -> None:
    """Refuse a folder in which a sweep would write over what is not its own.

    Args:
        goes_on: whether it may be that of a sweep that has begun.

    Raises:
        UserError: it holds a sweep, or files of such names, or something in it leads elsewhere.
    """
    if not folder.exists():
        return
    check_contents(folder)
    has_jobs = any(folder.glob(f"*/{JOB}"))
    if has_jobs and not goes_on:
        raise UserError(f"{folder} holds a sweep already; resume=allow resumes it")
    for name in (SWEEP, "multirun.yaml", "table.csv", "sweep.png"):
        if (folder / name).exists() and not has_jobs and not read_plan(folder).start:
            raise UserError(f"{folder} holds a {name} already, and no sweep; hydra.sweep.dir=... names another folder")


def _values_of(swept: Override) -> int:
    """How many values an override stands for."""
    return sum(1 for _ in swept.sweep_string_iterator()) if swept.is_discrete_sweep() else 1


def job_folder(sweep: str, number: int, overrides: ListConfig) -> str:
    """What to call a job's folder: by its place, and the values of what is swept. One of an earlier start with the same
    values keeps its name, also where the places are others now."""
    folder = Path(sweep)
    name = folder_name(Job(folder, number, swept_in(folder, overrides)).title.replace(", ", ","))
    start = read_plan(folder).start
    for file in sorted(folder.glob(f"*_{glob.escape(name)}/{JOB}")):
        before, place = read_job(file.parent), file.parent.name.removesuffix(f"_{name}")
        if place.isdecimal() and before is not None and (before.start != start or before.number == number):
            return file.parent.name
    return f"{number}_{name}"


def folder_name(text: str) -> str:
    """One folder's name: no separators in it, and no longer than file systems allow."""
    name = re.sub(r"[^\w.,=+-]", "_", text).strip(".") or "defaults"
    if len(name.encode()) <= 200:
        return name
    return f"{name.encode()[:190].decode(errors='ignore')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def swept_in(sweep: Path, overrides: Iterable[str]) -> dict[str, Any]:
    """The values of what is swept, by key; of all overrides where somebody's own `hydra.callbacks` took the place of
    ours."""
    swept, parsed = read_plan(sweep).swept, OverridesParser.create().parse_overrides(list(overrides))
    values = {each.key_or_group: each for each in parsed if swept is None or each.key_or_group in swept}
    return {key: _plain(each) for key, each in values.items()}


def _plain(override: Override) -> Any:
    value = override.value()
    return value if isinstance(value, int | float | bool | None) else override.get_value_element_as_str()

"""Several runs by one command (`--multirun`): what their folders are called, and what these say for a comparison.

`sweep.json` in a sweep's folder says what is swept, `job.json` in each job's how it went. They are files, since some
launchers run the jobs in processes, or on machines, of their own.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from chargpt.commands import tell
from chargpt.compare import JOB, SWEEP, short_names, shown
from chargpt.curve import read_curve
from chargpt.errors import Stopped


def in_sweep() -> bool:
    """Whether this process runs a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


class RecordSweep(Callback):
    """Writes `sweep.json` before the first job.

    Attributes:
        folder: that of the sweep which this process started.
    """

    folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        hydra, folder = config.hydra, Path(config.hydra.sweep.dir)
        searched = [f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()]
        overrides = _parsed([*searched, *hydra.overrides.task])
        swept = {each.key_or_group: each for each in overrides if each.is_sweep_override()}
        jobs = hydra.sweeper.get("n_trials") or math.prod(map(_values_of, swept.values()))
        fixed = [each.input_line for each in overrides if each.key_or_group not in (*swept, "resume")]
        hydras = [each for each in hydra.overrides.hydra if not each.startswith(("hydra.sweep.dir=", "hydra.mode="))]
        task = [each for each in hydra.overrides.task if not each.startswith("resume=")]
        command = ["-m", "resume=allow", f"hydra.sweep.dir={hydra.sweep.dir}", *hydras, *task]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / SWEEP, {"swept": list(swept), "fixed": fixed, "jobs": jobs, "command": command})
        except OSError:  # Hydra writes there next, and its error is told
            return
        RecordSweep.folder = folder
        tell(f"{jobs} jobs in {folder}; the lines of each are in its train.log")


def _parsed(overrides: Iterable[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(overrides))


def _values_of(swept: Override) -> int:
    """How many values an override stands for."""
    return sum(1 for _ in swept.sweep_string_iterator()) if swept.is_discrete_sweep() else 1


def job_folder(sweep: str, overrides: list[str]) -> str:
    """What to call a job's folder: by the values of what is swept, and nothing else."""
    values = _swept(Path(sweep), overrides)
    names = short_names(values)
    return folder_name(",".join(f"{names[key]}={shown(value)}" for key, value in values.items()))


def folder_name(text: str) -> str:
    """One folder's name: no separators in it, and no longer than file systems allow."""
    name = re.sub(r"[^\w.,=+-]", "_", text).strip(".") or "defaults"
    if len(name.encode()) <= 200:
        return name
    return f"{name.encode()[:190].decode(errors='ignore')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def swept_values() -> dict[str, Any]:
    """The values by which this job of a sweep differs from the others; none outside of a sweep."""
    if not in_sweep():
        return {}
    hydra = HydraConfig.get()
    return _swept(Path(hydra.sweep.dir), hydra.overrides.task)


def _swept(sweep: Path, overrides: Iterable[str]) -> dict[str, Any]:
    swept = _record(sweep).get("swept")
    values = {each.key_or_group: each for each in _parsed(overrides) if swept is None or each.key_or_group in swept}
    return {key: _plain(each) for key, each in values.items()}


def _record(sweep: Path) -> dict[str, Any]:
    """What was written before the first job; nothing where somebody's own `hydra.callbacks` took the place of ours."""
    try:
        return json.loads((sweep / SWEEP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _plain(override: Override) -> Any:
    value = override.value()
    return value if isinstance(value, int | float | bool | None) else override.get_value_element_as_str()


class Job:
    """This job of a sweep: its place, its values, and the record of how it went."""

    def __init__(self) -> None:
        hydra = HydraConfig.get()
        self.folder = Path(hydra.runtime.output_dir)
        self.number, self.values = hydra.job.num, swept_values()
        names = short_names(self.values)
        what = ", ".join(f"{names[key]}={shown(value)}" for key, value in self.values.items())
        of = _record(Path(hydra.sweep.dir)).get("jobs", "?")
        self.title = f"{self.number + 1} of {of}: {what or 'the defaults'}"

    def record(self, *, finished: bool = False, error: str | None = None) -> None:
        """Write how it stands."""
        about = {"number": self.number, "values": self.values, "finished": finished, "error": error}
        _write(self.folder / JOB, about)

    @contextmanager
    def recorded(self, in_words: Callable[[Exception], str]) -> Iterator[None]:
        """Records what becomes of what is done inside; an error, in words. That it had come to its end before stays."""
        if not (before := self.finished_before()):
            self.record()
        try:
            yield
        except Stopped:
            self.record()
            raise
        except Exception as error:
            self.record(finished=before, error=in_words(error))
            raise
        self.record(finished=True)

    def summary(self) -> str:
        """How it went, in some words."""
        curve = read_curve(self.folder)
        if not curve:
            return "not validated"
        best = min(curve, key=lambda point: point.val_loss)
        return f"val loss {best.val_loss:.4f} at step {best.step:,}, {curve[-1].seconds:,.0f} s"

    def tell(self, what: str) -> None:
        """A line on the terminal about this job."""
        tell(f"{self.title}: {what}")

    def finished_before(self) -> bool:
        """Whether an earlier start of the sweep has ended it."""
        try:
            return json.loads((self.folder / JOB).read_text(encoding="utf-8"))["finished"] is True
        except (OSError, ValueError, KeyError, TypeError):
            return False


def _write(file: Path, content: Any) -> None:
    half = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    half.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(half, file)

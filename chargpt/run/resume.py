"""Resuming a run: its stored overrides are replayed, and its last checkpoint is read.

A run's folder may come from a stranger: only harmless overrides are replayed (`may_replay`); the others have to be
typed again.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from chargpt.command_line import quoted
from chargpt.errors import UserError, first_line
from chargpt.files import find, write
from chargpt.history import JOB
from chargpt.run.config import CONF, TEXTS, Settings, composed, in_hydras_quotes, is_override, prepared
from chargpt.run.folder import CHECKPOINTS, check_contents, has_state, short

if TYPE_CHECKING:
    from chargpt.checkpoint import Checkpoint

log = logging.getLogger(__name__)

CONFIG, OVERRIDES = ".hydra/config.yaml", ".hydra/overrides.yaml"
FIXED = (  # weights, optimizer state and batches depend on these: another value is another run
    "model", "optimizer", "seed", "data.seed", "data.batch_size", "data.block_size", "data.replace", "data.split",
    "data.tokenizer", "trainer.accumulate_grad_batches",
)  # fmt: skip
NOT_REPLAYED = (*TEXTS, "resume", "run_dir")  # a run finds its texts by hash


class Resumption(NamedTuple):
    """What a run resumes from."""

    path: Path
    checkpoint: "Checkpoint"
    step: int  # optimizer steps taken
    fixed: dict[str, Any]  # the values of `FIXED` that the run was trained with, by key
    stopped_early: bool  # by early stopping or another callback


def with_resume(arguments: list[str], outputs: str | Path = "outputs") -> list[str]:
    """The command line with `resume=` written out: the run's stored overrides, the typed ones, and its folder.
    `resume=auto` looks for the newest run in `outputs`."""
    arguments = prepared(arguments)
    resume, rest = _take("resume", arguments)
    folder, typed = _take("hydra.run.dir", rest)
    if resume in (None, "null"):
        return arguments
    if any(re.match("-m$|--m", argument) for argument in rest):  # a sweep
        if resume != "allow" or "${" in (_take("hydra.sweep.dir", rest)[0] or "${"):
            raise UserError("a sweep resumes by resume=allow hydra.sweep.dir=...; see python -m chargpt.compare FOLDER")
        return arguments
    if resume == "allow":
        if "${" in (folder or "${"):
            raise UserError("resume=allow needs a folder: hydra.run.dir=...")
        if not has_state(Path(str(folder))):
            check_contents(Path(str(folder)))  # before Hydra writes its log there
            return arguments
    run = newest_run(outputs) if resume == "auto" else Path(str(folder if resume == "allow" else resume))
    check_run(run)
    if folder is not None and Path(folder).resolve() != run.resolve():
        raise UserError(f"a run resumes in its own folder, {run}, not in hydra.run.dir={folder}")
    place = in_hydras_quotes(str(run.resolve()))
    written_out = [*replayed(run, typed), f"resume={'allow' if resume == 'allow' else place}", f"hydra.run.dir={place}"]
    return sorted([*written_out, *typed], key=is_override)


def _take(key: str, arguments: list[str]) -> tuple[str | None, list[str]]:
    """The last value of a key, or None, and the other arguments."""
    given = [each for each in arguments if re.match(rf"\+{{0,2}}{re.escape(key)}=", each)]
    if not given:
        return None, arguments
    value = _parsed(given[-1]).value()
    return "null" if value is None else str(value), [each for each in arguments if each not in given]


def _parsed(override: str) -> Override:
    return OverridesParser.create().parse_overrides([override])[0]


def newest_run(outputs: str | Path) -> Path:
    """The run that saved its state last, without those of sweeps."""
    files = [file for name in CHECKPOINTS for file in find(outputs, name) if not (file.parents[1] / JOB).exists()]
    if not files:
        raise UserError(f"resume=auto found no run to resume in {outputs}/")
    return max(files, key=lambda file: file.stat().st_mtime).parents[1]


def check_run(run: Path) -> None:
    """Refuse what is not the folder of a run, or has links that lead out of it."""
    if not (run / OVERRIDES).is_file():
        wrong = "is not the folder of a run" if run.exists() else "does not exist"
        raise UserError(f"{short(run)} {wrong}; resume=auto takes the newest run, and a sweep resumes by resume=allow")
    check_contents(run)


def replayed(run: Path, typed: Sequence[str]) -> list[str]:
    """The stored overrides of a run that are replayed, without those that are typed now."""
    harmless, others = _stored(run, typed)
    if others:
        again = _command(run, [*filter(is_override, typed), *others])
        why = "these are not taken from a run's folder; repeat them"
        raise UserError(f"{short(run)} was started with {' '.join(others)}: {why} (with --config-dir, if any): {again}")
    return harmless


def _stored(run: Path, typed: Sequence[str]) -> tuple[list[str], list[str]]:
    """The stored overrides that are harmless and those that are not, without those that are typed now."""
    now = [_parsed(each) for each in typed if is_override(each)]
    exact = (*NOT_REPLAYED, *(each.key_or_group for each in now))
    below = tuple(f"{each.key_or_group}." for each in now if not _is_option(each))  # an option keeps single values
    stored = [each for each in map(_parsed, read_overrides(run)) if each.key_or_group not in exact]
    stored = [each for each in stored if not each.key_or_group.startswith(below)]
    base = composed([str(each.input_line) for each in stored if _is_option(each)])
    judged = [(str(each.input_line), may_replay(each, base)) for each in stored]
    return [line for line, harmless in judged if harmless], [line for line, harmless in judged if not harmless]


def read_overrides(run: Path) -> list[str]:
    """The overrides stored in a run's folder."""
    try:
        found = yaml.safe_load((run / OVERRIDES).read_text(encoding="utf-8"))
        if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
            raise ValueError("it is not a list of overrides")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{run / OVERRIDES} is damaged: {first_line(error)}") from error
    return found


def _is_option(override: Override) -> bool:
    """Whether it chooses a file in a group of `conf/`."""
    group, _, option = str(override.input_line).partition("=")
    return bool(re.fullmatch(r"[a-z]+=[\w-]+", f"{group}={option}")) and (CONF / group / f"{option}.yaml").is_file()


def may_replay(override: Override, base: DictConfig) -> bool:
    """Whether a stored override can do no harm, even in a hostile folder: an option of a group in `conf/`; something
    left out; a number, boolean, null or list of these; text where `base`, which `conf/` composes with the run's
    options, has plain text or null."""
    key, value = override.key_or_group, override.value()
    adds = override.is_add() or override.is_force_add()
    if key.startswith("hydra") or (adds and value is not None):
        return False
    if _is_option(override):
        return True
    if isinstance(value, str):
        if key.endswith("_target_") or key.startswith("trainer.logger"):  # a class, or a part of a folder's path
            return False
        before = _leaves(OmegaConf.to_container(base)).get(key, "${}")
        plain = before is None or (isinstance(before, str) and "${" not in before) or key == "trainer.devices"
        return plain and "${" not in value
    return all(isinstance(each, int | float | None) for each in (value if isinstance(value, list) else [value]))


def command_to_resume(run: Path) -> str:
    """The command line that resumes a run: the overrides that are not replayed have to be typed again."""
    return _command(run, _stored(run, [])[1])


def _command(run: Path, overrides: Sequence[str]) -> str:
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else []
    flags = [word for each in sources if "command-line" in each.provider for word in ("--config-dir", each.path)]
    return quoted(["python", "train.py", *flags, f"resume={short(run)}", *overrides])


def load_state(run: Path) -> Resumption:
    """What a run resumes from: its last checkpoint, or the one before if that is damaged."""
    from chargpt.checkpoint import from_contents, load  # torch takes a while to import

    files = [file for name in CHECKPOINTS if (file := run / name).exists()]
    for file in files:
        try:
            contents = load(file)
            checkpoint = from_contents(contents, file)
            step, fixed, early = checkpoint.step, contents["fixed"], contents.get("stopped_early") is True
            if step is None or not isinstance(fixed, dict) or len(contents["optimizer_states"]) != 1:
                raise LookupError
            return Resumption(file, checkpoint, step, fixed, early)
        except (UserError, LookupError, TypeError) as error:
            why = str(error) if isinstance(error, UserError) else "it is not a state of training"
            log.warning(f"Passing over {file}: {why.removeprefix(f'{file} ')}")
    if files:
        raise UserError(f"{run} has no usable checkpoint to resume from ({' or '.join(CHECKPOINTS)})")
    raise UserError(f"{run} ended before its first save: the command that began it (hydra.run.dir=...) begins it again")


def fixed_values(settings: Settings) -> dict[str, Any]:
    """The values of `FIXED`, by key."""
    found = _leaves(asdict(settings))
    return {key: found[key] for key in found if any(f"{key}.".startswith(f"{fixed}.") for fixed in FIXED)}


def check_same(resumption: Resumption, settings: Settings) -> None:
    """Refuse settings that would train another run than this one."""
    before = resumption.fixed
    for key, now in fixed_values(settings).items():
        if key in before and before[key] != now:
            trained = f"{short(resumption.path)} was trained with {key}={before[key]}, on which its state depends"
            raise UserError(f"{key} cannot become {now}: {trained}; start a new run for it")


def store(cfg: DictConfig, run: Path) -> None:
    """Store what a run was started or resumed with: the overrides to replay and, for people, the configuration."""
    (run / OVERRIDES).parent.mkdir(exist_ok=True)
    if HydraConfig.initialized():
        overrides = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
        write(run / OVERRIDES, yaml.safe_dump(overrides, allow_unicode=True).encode())
    write(run / CONFIG, OmegaConf.to_yaml(cfg).encode())


def began_with(cfg: DictConfig, run: Path) -> bool:
    """Whether a run with this very configuration began in the folder."""
    return (run / CONFIG).is_file() and (run / CONFIG).read_bytes() == OmegaConf.to_yaml(cfg).encode()


def _leaves(node: Any, path: str = "") -> dict[str, Any]:
    """The values of nested mappings by their keys, such as `model.n_layer`."""
    if not isinstance(node, dict):
        return {path: node}
    below = [_leaves(value, f"{path}.{name}".lstrip(".")) for name, value in node.items()]
    return {key: leaf for leaves in below for key, leaf in leaves.items()}

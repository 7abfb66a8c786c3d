"""From a file to the model, its tokenizer and the facts stored with them.

Files may come from strangers. Lightning's checkpoints are read with `weights_only`, which runs no code; a shared folder
holds JSON and numbers. The configuration in them must be valid, and the weights must fit it.

A checkpoint is a mapping that Lightning writes:

    state_dict            weights (`net.*`) and the lowest validation loss
    hyper_parameters      model, optimizer, characters, corpus and scoring, see `chargpt.module.CharLM`
    global_step           optimizer steps taken

and in full ones (last.ckpt), to resume:

    optimizer_states, callbacks                  Lightning's own (so are loops, which are in all files)
    fixed, random_states                         settings to keep; random states by rank (run/state.py)
    stopped_early                                true after early stopping (callbacks/saving.py)
"""

import contextlib
import json
import math
import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chargpt.errors import UserError, explain, tell
from chargpt.files import find
from chargpt.settings import make, read_settings, require_at_least, require_split
from chargpt.tokenizer import Tokenizer, tokenizer_of

if TYPE_CHECKING:
    import torch

    from chargpt.model import Model

WEIGHTS, CONFIG = "model.safetensors", "config.json"  # of a shared folder


@dataclass
class EvalSettings:
    """How a run validated: the shares of the text (training, validation and, if there are three, test), blocks per
    batch, and Lightning's name of the precision. Stored in the checkpoint, so that the loss can be computed again."""

    split: list[float] = field(default_factory=lambda: [0.9, 0.1])
    batch_size: int = 64
    precision: str = "32-true"

    def __post_init__(self) -> None:
        require_split("scoring", self.split)
        require_at_least(1, self, "scoring", "batch_size")


@dataclass(frozen=True)
class Checkpoint:
    """A trained model and the facts in its file.

    Attributes:
        text: the name and SHA-256 of the text (`name`, `sha256`) and of separate ones (`val_name`, `test_sha256`, ...).
        best_loss: the lowest validation loss of the run; None if unknown.
        step: optimizer steps taken; None if unknown.
        optimizer: its settings, for display.
    """

    model: Any  # a chargpt.model.Model
    tokenizer: Tokenizer
    text: dict[str, str]
    scoring: EvalSettings
    best_loss: float | None = None
    step: int | None = None
    optimizer: dict[str, Any] = field(default_factory=dict)


def public_name(name: str) -> str:
    """The name of a text without its folders, which are private."""
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1]


def find_checkpoint(
    run_or_file: str | os.PathLike[str] | None = None, outputs: str | os.PathLike[str] = "outputs"
) -> Path:
    """The file to read: a checkpoint; the best one (or else the last) of a run's folder; or a shared folder's weights.
    None stands for the newest run in `outputs`."""
    if run_or_file is None:
        found = [*find(outputs, "checkpoints/best.ckpt"), *find(outputs, "checkpoints/last.ckpt")]
        if not found:
            raise UserError(f"no run in {outputs}/: train one with python train.py, or name it: --ckpt")
        path = find_checkpoint(max(found, key=lambda file: file.stat().st_mtime).parent)
        tell(f"The newest run: {path}")
        return path
    path = Path(run_or_file).expanduser()
    names = ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "best.ckpt", "last.ckpt", WEIGHTS)
    for file in (path, *(path / name for name in names)):
        if file.is_file():
            return file
    wrong = f"{path} is no checkpoint and no folder of one run"
    raise UserError(wrong if path.exists() else f"no such checkpoint or run: {path}")


def load_checkpoint(path: str | os.PathLike[str], device: "str | torch.device" = "cpu") -> "tuple[Model, Tokenizer]":
    """The model in eval mode, and its tokenizer, from anything that `find_checkpoint` takes."""
    checkpoint = read_checkpoint(find_checkpoint(path))
    return checkpoint.model.to(device).eval(), checkpoint.tokenizer


def read_checkpoint(path: Path) -> Checkpoint:
    """The model in a checkpoint or in a shared folder's weights, and the facts about it."""
    if path.suffix != ".safetensors":
        return from_contents(load(path), path)

    from safetensors.torch import load as load_weights

    with _reading(path.parent):
        facts = dict(json.loads(path.with_name(CONFIG).read_bytes()))
        weights = load_weights(path.read_bytes())
    return _fit(facts, weights, path)


def load(path: Path) -> dict[str, Any]:
    """The contents of a file that Lightning wrote."""
    import torch

    with _reading(path), zipfile.ZipFile(path) as archive:
        if archive.testzip() is not None:  # torch.load does not compare checksums
            raise ValueError("damaged")
        return dict(torch.load(path, map_location="cpu", weights_only=True))


def from_contents(contents: dict[str, Any], path: Path) -> Checkpoint:
    """The checkpoint in what `load` returned for a file."""
    with _reading(path):
        state = contents["state_dict"]
        best = float(state.get("best_val_loss.min_value", math.inf))
        facts = {
            **contents["hyper_parameters"],
            "text": contents["hyper_parameters"].get("corpus"),
            "step": contents.get("global_step"),
            "best_loss": best if best < math.inf else None,
        }
        weights = {name.removeprefix("net."): each for name, each in state.items() if name.startswith("net.")}
    return _fit(facts, weights, path)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Report a file that is missing, damaged or foreign, in one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read {error.filename or path}: {error.strerror or error}") from error
    except Exception as error:  # the kind depends on the damage
        if explain(error):  # out of memory
            raise
        raise UserError(f"{path} is damaged, or not a file that chargpt wrote") from error


def _fit(facts: dict[str, Any], weights: "dict[str, torch.Tensor]", path: Path) -> Checkpoint:
    """The model with the configuration in `facts` and these weights, which keep their dtype."""
    import torch

    from chargpt.model import MODEL_CONFIGS, build_model

    try:
        config = read_settings("model", MODEL_CONFIGS, facts.get("model"))
        tokenizer = tokenizer_of(facts.get("characters", ""))
        misfit = UserError(f"its weights are not finite numbers that fit {config}")
        try:
            with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay the same
                model = build_model(config, tokenizer.vocab_size)
            model.load_state_dict(weights, assign=True)
            types = {weight.dtype for weight in weights.values()}
            if len(types) > 1 or not all(w.is_floating_point() and w.isfinite().all() for w in weights.values()):
                raise misfit
        except (RuntimeError, AttributeError) as error:
            raise misfit from error
        values = {"model": model, "tokenizer": tokenizer, "text": facts.get("text") or {}}
        values["scoring"] = make("scoring", EvalSettings, facts.get("scoring") or {})
        values |= {key: facts[key] for key in ("best_loss", "step", "optimizer") if facts.get(key) is not None}
        return make("checkpoint", Checkpoint, values)
    except UserError as error:
        raise UserError(f"{path} cannot be used: {error}") from error

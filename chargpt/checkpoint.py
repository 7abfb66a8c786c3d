"""From a file to the model, its tokenizer, and the facts that the file states about them.

Files may come from strangers. Lightning's checkpoints are read with `weights_only`, which runs no code; a shared folder
holds JSON and numbers. What they describe must be a valid configuration, and the weights must fit it.
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

from chargpt.errors import UserError, explain
from chargpt.files import find
from chargpt.settings import check_ranges, check_split, make, read_settings
from chargpt.tokenizer import Tokenizer, tokenizer_of

if TYPE_CHECKING:
    import torch

    from chargpt.model import Model
else:
    Model = Any  # its import would load torch

WEIGHTS, CONFIG = "model.safetensors", "config.json"  # of a shared folder
FORMAT = 1  # of its config.json


def public_name(name: str) -> str:
    """The name of a text without the folders that it lay in: these are private."""
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1][:200] or "an unnamed text"


def find_checkpoint(
    run_or_file: str | os.PathLike[str] | None = None, outputs: str | os.PathLike[str] = "outputs"
) -> Path:
    """The file to read.

    Args:
        run_or_file: a checkpoint; a run's folder (its best checkpoint, or its last if it was not validated yet); or a
            folder that `chargpt.share` wrote. None is the newest run.
        outputs: where to look for the newest run.
    """
    if run_or_file is None:
        found = [*find(outputs, "checkpoints/best.ckpt"), *find(outputs, "checkpoints/last.ckpt")]
        if not found:
            raise UserError(f"no run in {outputs}/: train one with python train.py, or name it: --ckpt")
        run_or_file = max(found, key=lambda file: file.stat().st_mtime).parent.parent
    path = Path(run_or_file)
    if path.is_file():
        return path
    if not path.exists():
        raise UserError(f"no such checkpoint or run: {path}")
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "best.ckpt", "last.ckpt", WEIGHTS):
        if (path / name).is_file():
            return path / name
    if runs := find(path, "checkpoints/*.ckpt"):
        raise UserError(f"{path} holds several runs: name one of them, such as {runs[0].parent.parent}")
    raise UserError(f"{path} holds no checkpoint (checkpoints/best.ckpt, checkpoints/last.ckpt or {WEIGHTS})")


@dataclass
class Scoring:
    """How a run scores its text. It is kept in the checkpoint, so that the same numbers can be computed again.

    Attributes:
        split: the shares of the text for training, validation and, if there are three, test.
        batch_size: blocks per batch.
        precision: Lightning's name for it.
    """

    split: list[float] = field(default_factory=lambda: [0.9, 0.1])
    batch_size: int = 64
    precision: str = "32-true"

    def __post_init__(self) -> None:
        check_split("scoring", self.split)
        check_ranges("scoring", self, batch_size=(1, 100_000_000))


@dataclass(frozen=True)
class Checkpoint:
    """A trained model and what its file states about it.

    Attributes:
        model: on the CPU.
        text: `name` and `sha256` of the training text; `val_name`, `test_sha256` and so on if there are separate texts
            for validation or test; empty if the file does not name them.
        best_loss: the lowest validation loss of the run so far, in nats per id; None if unknown.
        step: optimizer steps taken; None if unknown.
        optimizer: its settings, to be displayed.
    """

    model: "Model"
    tokenizer: Tokenizer
    text: dict[str, str]
    scoring: Scoring
    best_loss: float | None = None
    step: int | None = None
    optimizer: dict[str, Any] = field(default_factory=dict)


def load_checkpoint(path: str | os.PathLike[str], device: "str | torch.device" = "cpu") -> "tuple[Model, Tokenizer]":
    """The model in eval mode, and its tokenizer. Reading a file runs no code from it.

    Args:
        path: a checkpoint of `train.py`, a run's folder, or a folder that `chargpt.share` wrote.
        device: where the model goes.

    Raises:
        UserError: the file is missing, damaged or not a checkpoint of chargpt.
    """
    checkpoint = read_checkpoint(find_checkpoint(path))
    return checkpoint.model.to(device).eval(), checkpoint.tokenizer


def read_checkpoint(path: Path) -> Checkpoint:
    """The model in a checkpoint or in a shared folder's weights, and the facts about it."""
    if path.suffix != ".safetensors":
        return from_contents(load(path), path)

    from safetensors.torch import load_file

    with _reading(path.with_name(CONFIG)):
        facts = json.loads(path.with_name(CONFIG).read_bytes())
        if facts.pop("format_version") != FORMAT:
            raise ValueError("another version, or another program's")
    with _reading(path):
        weights = load_file(path)
    return _fit(facts, weights, path)


def load(path: Path) -> dict[str, Any]:
    """What Lightning saved in a file."""
    import torch

    with _reading(path), zipfile.ZipFile(path) as archive:
        if archive.testzip() is not None:  # torch.load does not compare checksums
            raise ValueError("damaged")
        contents = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(contents, dict):
            raise TypeError("not a mapping")
        return contents


def from_contents(contents: dict[str, Any], path: Path) -> Checkpoint:
    """The checkpoint that `load` found in a file."""
    with _reading(path):
        saved, state = contents["hyper_parameters"], contents["state_dict"]
        best = float(state.get("best_val_loss.min_value", math.inf))
        facts = {**saved, "text": saved.get("corpus"), "step": contents.get("global_step")}
        facts["best_loss"] = best if best < math.inf else None
        weights = {name.removeprefix("net."): each for name, each in state.items() if name.startswith("net.")}
    return _fit(facts, weights, path)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Report a file that is missing, damaged or foreign, in one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # the kind depends on the damage
        if explain(error):  # out of memory
            raise
        raise UserError(f"{path} is damaged, or not a file that chargpt wrote") from error


def _fit(facts: dict[str, Any], weights: "dict[str, torch.Tensor]", path: Path) -> Checkpoint:
    """The model that the facts describe, with these weights."""
    import torch

    from chargpt.model import MODEL_CONFIGS, GPTConfig, build_model

    floats = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
    try:
        config = read_settings("model", MODEL_CONFIGS, facts.get("model"))
        tokenizer = tokenizer_of(facts.get("characters", ""))
        kind, *others = {getattr(weight, "dtype", None) for weight in weights.values()} or {None}
        if kind not in floats or others:
            raise UserError("its weights are not floating-point numbers of one type")
        size = sum(weight.numel() for weight in weights.values())
        if isinstance(config, GPTConfig) and 12 * config.n_layer * config.n_embd**2 > size:
            raise UserError(f"it has too few weights for {config}")  # and need not fill the memory to find out
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay the same
            model = build_model(config, tokenizer.vocab_size).to(kind)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise UserError(f"its weights do not fit {config}") from error
        if not all(weight.isfinite().all() for weight in model.parameters()):
            raise UserError("its weights are not finite")
        values = {"model": model, "tokenizer": tokenizer, "text": facts.get("text") or {}}
        values["scoring"] = make("scoring", Scoring, facts.get("scoring") or {})
        values |= {key: facts[key] for key in ("best_loss", "step", "optimizer") if facts.get(key) is not None}
        return make("checkpoint", Checkpoint, values)
    except UserError as error:
        raise UserError(f"{path} cannot be used: {error}") from error

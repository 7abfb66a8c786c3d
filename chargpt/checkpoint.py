"""From a checkpoint file to a model and its tokenizer, without Lightning."""

import math
import os
import re
import zipfile
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chargpt.errors import UserError
from chargpt.jobs import SWEEP
from chargpt.settings import LARGEST, MOST_STEPS, check_ranges, check_split, make, read_settings
from chargpt.shared import CONFIG, TEXT_KEYS, WEIGHTS, is_of_texts, read_config, read_header, read_numbers
from chargpt.tokenizer import Tokenizer, tokenizer_of

if TYPE_CHECKING:
    import torch

    from chargpt.model import Model


def public_name(name: str) -> str:
    """What a text is called among strangers: which folders somebody has is nobody's business, and a name is short."""
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1][:200] or "an unnamed text"


def find_checkpoint(run_or_file: str | os.PathLike | None = None, outputs: str | os.PathLike = "outputs") -> Path:
    """The checkpoint to sample from.

    Args:
        run_or_file: a checkpoint, or a run's folder: its best checkpoint, or its last where none was scored yet; or
            a folder that `chargpt.share` wrote: its weights. None stands for the newest run.
        outputs: where to look for the newest run.

    Raises:
        UserError: there is none, or it may not be looked for.
    """
    try:
        return _find_checkpoint(run_or_file, Path(outputs))
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error


def _find_checkpoint(run_or_file: str | os.PathLike | None, outputs: Path) -> Path:
    if run_or_file is None:
        found = [*outputs.rglob("checkpoints/best.ckpt"), *outputs.rglob("checkpoints/last.ckpt")]
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
    if not path.is_dir():
        raise UserError(f"{path} is neither a checkpoint nor the folder of a run")
    if (path / SWEEP).is_file():
        raise UserError(f"{path} is the folder of a sweep: name one of its runs, {path}/...")
    raise UserError(
        f"the folder {path} holds no checkpoint (checkpoints/best.ckpt, checkpoints/last.ckpt or {WEIGHTS})"
    )


@dataclass
class Scoring:
    """How a run scores its text, kept in its checkpoints: by the same settings a machine comes to the same numbers.

    Attributes:
        split: the shares of the text that train, validate and, if there are three, test.
        batch_size: blocks side by side.
        precision: as Lightning calls it.

    Raises:
        UserError: a value is out of range.
    """

    split: list[float] = field(default_factory=lambda: [0.9, 0.1])
    batch_size: int = 64
    precision: str = "32-true"

    def __post_init__(self) -> None:
        check_split("scoring", self.split)
        check_ranges("scoring", self, batch_size=(1, LARGEST))
        if not re.fullmatch(r"[a-z0-9-]{1,40}", self.precision):
            raise UserError(f"scoring.precision must be one of Lightning's names; got {self.precision[:40]!r}")


def scoring_in(settings: Any) -> Scoring:
    """How a run scored its text, as a file says it; older files lack it, or have the share that validates alone.

    Raises:
        UserError: it is no such settings.
    """
    if isinstance(settings, dict) and type(share := settings.get("val_fraction")) is float:
        settings = {name: value for name, value in settings.items() if name != "val_fraction"}
        settings |= {"split": [1 - share, share]}
    return make("scoring", Scoring, settings)


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says about its model.

    Attributes:
        model: on the CPU.
        text: the `name` and the `sha256` of the text that it was trained on, and `val_name` and so on of texts of their
            own that it was validated or tested on; empty where the file does not say.
        scoring: how it was validated.
        best_loss: the lowest validation loss of its run so far, in nats per id; None where it is not known.
        step: optimizer steps taken; None where they are not known.
        optimizer: its settings, as the file says them: to be told, not to be used.
    """

    model: "Model"
    tokenizer: Tokenizer
    text: dict[str, str]
    scoring: Scoring
    best_loss: float | None = None
    step: int | None = None
    optimizer: dict[str, str] = field(default_factory=dict)


def load_checkpoint(path: str | os.PathLike[str], device: "str | torch.device" = "cpu") -> "tuple[Model, Tokenizer]":
    """The model in eval mode, and the tokenizer that it was trained with.

    What is read is data, whoever wrote it: it cannot run code.

    Args:
        path: a checkpoint that `train.py` wrote, a run's folder, or a folder that `chargpt.share` wrote.
        device: where the model goes.

    Raises:
        UserError: the file is missing, damaged or not a checkpoint of chargpt.
    """
    checkpoint = read_checkpoint(find_checkpoint(path))
    return checkpoint.model.to(device).eval(), checkpoint.tokenizer


def read_checkpoint(path: Path) -> Checkpoint:
    """The model of a checkpoint, and what it says about it.

    Raises:
        UserError: the file is missing, damaged or not a checkpoint of chargpt.
    """
    if path.suffix == Path(WEIGHTS).suffix:
        return read_shared(path)
    try:
        checkpoint = read_archive(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # what a damaged or foreign file raises depends on the damage
        raise UserError(f"{path} is damaged, or not a checkpoint that train.py wrote") from error
    try:
        saved = checkpoint["hyper_parameters"]
        tokenizer = tokenizer_of(saved["characters"])
        text = text_in(checkpoint) if saved.get("corpus") else {}
        scoring = scoring_in(saved.get("scoring", {}))
        optimizer = _shown_settings(saved.get("optimizer"))
        return Checkpoint(model_in(checkpoint), tokenizer, text, scoring, *progress_in(checkpoint), optimizer)
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a checkpoint that train.py wrote: settings or weights are missing") from error
    except UserError as error:
        raise UserError(f"{path} cannot be used: {error}") from error


def _shown_settings(settings: Any) -> dict[str, str]:
    """Some settings that nobody has looked at, as they can be shown."""
    items = islice(settings.items(), 40) if isinstance(settings, dict) else ()
    return {
        name[:40]: value[:100] if isinstance(value, str) else f"{value!r:.100}"
        for name, value in items
        if isinstance(name, str)
    }


def read_shared(path: Path) -> Checkpoint:
    """The model whose weights `chargpt.share` wrote, with what the file beside them says about it.

    Nothing of the weights is read before their names, shapes and places in the file are what the settings imply.

    Raises:
        UserError: a file is missing, damaged or not one that `chargpt.share` wrote.
    """

    try:
        config = read_config(path.with_name(CONFIG))
        tokenizer = tokenizer_of(config.characters)
        scoring = scoring_in(config.scoring)
        with open(path, "rb") as file:
            header = read_header(file)
            model = fit(config.model, tokenizer.vocab_size, header)
            weights = read_numbers(file, header)
        model.load_state_dict(weights, assign=True)
        check_finite(weights)
    except UserError as error:
        raise UserError(f"{path} cannot be used: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {error.filename or path}: {error.strerror}") from error
    except Exception as error:  # what a damaged or foreign file raises depends on the damage
        raise UserError(f"{path} is damaged, or not a file that chargpt.share wrote") from error
    return Checkpoint(model, tokenizer, config.text, scoring, config.best_loss, config.step)


def read_archive(path: Path) -> dict[str, Any]:
    """What a file holds that `torch.save` wrote, as data, on the CPU.

    The memory that it takes is in proportion to the file, whatever the file says, and every byte read matches its
    checksum. `torch.load` notices neither.

    Raises:
        OSError: the file cannot be read.
        Exception: it is damaged or no such archive; of which kind depends on the damage.
    """
    import numpy as np
    import torch

    from chargpt.pickled import Reader

    size = path.stat().st_size
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        if sum(max(record.file_size, record.compress_size) for record in records) > size:
            raise ValueError("larger than its file")
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):  # torch.save compresses nothing
            raise ValueError("compressed")
        [pickle] = [record.filename for record in records if record.filename.endswith("data.pkl")]

        def read_storage(key: str, dtype: torch.dtype, length: int) -> torch.Tensor:
            record = archive.getinfo(f"{pickle.removesuffix('data.pkl')}data/{key}")
            if record.file_size != length * dtype.itemsize:
                raise ValueError(f"{record.filename} is of another size")
            numbers = torch.empty(record.file_size, dtype=torch.uint8)  # where kernels are quickest
            numbers.numpy()[:] = np.frombuffer(archive.read(record), np.uint8)
            return numbers.view(dtype)

        return Reader(read_storage, size).read(archive.read(pickle))


def text_in(checkpoint: dict[str, Any]) -> dict[str, str]:
    """What a checkpoint says of its texts: the keys are some of `TEXT_KEYS`.

    Raises:
        LookupError, TypeError: it does not name the one that its model was trained on, or what it says is no name.
    """
    said = checkpoint["hyper_parameters"]["corpus"]
    text = {key: said[key] for key in TEXT_KEYS if key in TEXT_KEYS[:2] or key in said}
    if not all(isinstance(value, str) for value in text.values()) or not is_of_texts(text):
        raise TypeError("not a name")
    return text


def progress_in(checkpoint: dict[str, Any]) -> tuple[float | None, int | None]:
    """The lowest validation loss so far and the steps taken, each None where the checkpoint does not know it."""
    best, step = checkpoint["state_dict"].get("best_val_loss.min_value"), checkpoint.get("global_step")
    loss = float(best) if getattr(best, "shape", None) == () else math.inf
    return loss if 0 <= loss < math.inf else None, step if type(step) is int and 0 <= step < MOST_STEPS else None


def model_in(checkpoint: dict[str, Any]) -> "Model":
    """The model in a checkpoint, around its very tensors.

    Raises:
        LookupError, TypeError, AttributeError: settings or weights are missing.
        UserError: the settings are wrong, or the weights do not fit them or are not finite.
    """
    settings = checkpoint["hyper_parameters"]
    weights = {name[4:]: value for name, value in checkpoint["state_dict"].items() if name.startswith("net.")}
    model = fit(settings["model"], tokenizer_of(settings["characters"]).vocab_size, weights)
    check_finite(weights)
    return model


def fit(settings: Any, vocab_size: int, weights: "dict[str, torch.Tensor]") -> "Model":
    """The model of these settings around these very tensors, which may be on the meta device: none is looked into.

    Raises:
        TypeError, AttributeError: one is no tensor.
        UserError: the settings are wrong, or the weights do not fit them.
    """
    from chargpt.model import MODEL_CONFIGS, build_skeleton

    config = read_settings("model", MODEL_CONFIGS, settings)
    for name, weight in weights.items():
        if not weight.is_contiguous():
            raise UserError(f"the weights {name} are not laid out as a model's")
    kinds = {weight.dtype for weight in weights.values()}
    if len(kinds) > 1 or not all(kind.is_floating_point for kind in kinds):
        raise UserError(f"its weights are not numbers of one kind: {', '.join(sorted(map(str, kinds)))}")
    misfit = f"the weights do not fit its settings: {config}"
    if getattr(config, "n_layer", 0) > len(weights):  # each layer has some, so a skeleton need not be made to tell
        raise UserError(misfit)
    model = build_skeleton(config, vocab_size)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise UserError(misfit) from error
    return model


def check_finite(weights: "dict[str, torch.Tensor]") -> None:
    """Refuse weights that are not finite numbers.

    Raises:
        UserError: some are not.
    """
    for name, weight in weights.items():
        least, most = weight.aminmax()
        if not (least.isfinite() and most.isfinite()):
            raise UserError(f"the weights {name} are not finite numbers")


def load(path: Path) -> dict[str, Any]:
    import torch

    try:
        if zipfile.ZipFile(path).testzip() is not None:
            raise UserError(f"{path} is damaged")
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        raise UserError(f"{path} is damaged, or not a checkpoint that train.py wrote") from error


def from_contents(checkpoint: dict[str, Any], path: Path) -> Checkpoint:
    saved = checkpoint["hyper_parameters"]
    tokenizer = tokenizer_of(saved["characters"])
    return Checkpoint(
        model_in(checkpoint),
        tokenizer,
        text_in(checkpoint),
        scoring_in(saved.get("scoring", {})),
        *progress_in(checkpoint),
        {},
    )

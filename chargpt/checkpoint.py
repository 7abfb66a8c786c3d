"""From a checkpoint file to a model and its tokenizer, without Lightning."""

import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chargpt.errors import UserError
from chargpt.settings import read_settings
from chargpt.tokenizer import CharTokenizer

if TYPE_CHECKING:
    import torch

    from chargpt.model import Model, ModelConfig


def find_checkpoint(run_or_file: str | os.PathLike | None = None, outputs: str | os.PathLike = "outputs") -> Path:
    """The checkpoint to sample from.

    Args:
        run_or_file: a checkpoint, or a run's folder: its best checkpoint, or its last where none was scored yet.
            None stands for the newest run.
        outputs: where to look for the newest run.

    Raises:
        UserError: there is none.
    """
    if run_or_file is None:
        found = [*Path(outputs).rglob("checkpoints/best.ckpt"), *Path(outputs).rglob("checkpoints/last.ckpt")]
        if not found:
            raise UserError(f"no run to sample from in {outputs}/: train one with python train.py, or name it: --ckpt")
        run_or_file = max(found, key=lambda file: file.stat().st_mtime).parent.parent
    path = Path(run_or_file)
    if path.is_file():
        return path
    if not path.exists():
        raise UserError(f"no such checkpoint or run: {path}")
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "best.ckpt", "last.ckpt"):
        if (path / name).is_file():
            return path / name
    raise UserError(f"the folder {path} holds no checkpoint (checkpoints/best.ckpt or checkpoints/last.ckpt)")


def load_checkpoint(
    path: str | os.PathLike[str], device: "str | torch.device" = "cpu"
) -> "tuple[Model, CharTokenizer]":
    """The model in eval mode, and the tokenizer that it was trained with.

    The file is read as data (`weights_only=True`): it cannot run code.

    Args:
        path: a checkpoint that `train.py` wrote, or a run's folder.
        device: where the model goes.

    Raises:
        UserError: the file is missing, damaged or not a checkpoint of chargpt.
    """
    import torch  # here, so that sample.py can name a missing file without waiting for it

    from chargpt.model import build_model

    path = find_checkpoint(path)
    try:
        checkpoint = read_archive(path)
    except Exception as error:  # what a damaged or foreign file raises depends on the damage
        raise UserError(f"{path} is damaged, or not a checkpoint that train.py wrote") from error
    try:
        tokenizer = CharTokenizer(checkpoint["hyper_parameters"]["characters"])
        config, weights = model_of(checkpoint)
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a checkpoint that train.py wrote: settings or weights are missing") from error
    except UserError as error:
        raise UserError(f"{path} cannot be used: {error}") from error
    # On torch's meta device no weights would be drawn, but its first use imports for a second.
    with torch.random.fork_rng(devices=[]):
        model = build_model(config, tokenizer.vocab_size)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise UserError(f"the weights in {path} do not fit its settings: {config}") from error
    return model.to(device).eval(), tokenizer


def read_archive(path: Path) -> dict[str, Any]:
    """What a file holds that `torch.save` wrote, as data.

    Refused is also what `torch.load` would not notice: bytes that changed, and an archive that grows when it is read
    (`torch.save` compresses nothing, so that is another's work).

    Raises:
        Exception: the file is damaged or no such archive; of which kind depends on the damage.
    """
    import torch

    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise ValueError("larger than its file")
        if (name := archive.testzip()) is not None:
            raise ValueError(f"{name} does not match its checksum")
    return torch.load(path, map_location="cpu", weights_only=True)


def model_of(checkpoint: dict[str, Any]) -> "tuple[ModelConfig, dict[str, torch.Tensor]]":
    """The model's configuration in a checkpoint, and its weights, which can be of that size.

    Checked before the model is built: a forged file could otherwise demand any amount of memory.

    Raises:
        LookupError, TypeError, AttributeError: settings or weights are missing.
        UserError: the settings are wrong, or the weights are of another size.
    """
    from chargpt.model import MODEL_CONFIGS

    settings = checkpoint["hyper_parameters"]
    config = read_settings("model", MODEL_CONFIGS, settings["model"])
    weights = {name[4:]: value for name, value in checkpoint["state_dict"].items() if name.startswith("net.")}
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    if not config.fits(len(settings["characters"]), shapes):
        raise UserError(f"the weights do not fit its settings: {config}")
    return config, weights

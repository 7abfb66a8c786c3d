"""From a checkpoint file to a model and its tokenizer, without Lightning."""

import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chargpt.errors import UserError
from chargpt.tokenizer import CharTokenizer

if TYPE_CHECKING:
    import torch

    from chargpt.model import GPT, Bigram


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
    path: str | os.PathLike, device: "str | torch.device" = "cpu"
) -> "tuple[GPT | Bigram, CharTokenizer]":
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
        check_archive(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged or foreign file raises depends on the damage
        raise UserError(f"{path} is damaged, or not a checkpoint that train.py wrote") from error
    try:
        settings = checkpoint["hyper_parameters"]
        tokenizer = CharTokenizer(settings["characters"])
        config = dict(settings["model"])
        weights = {name[4:]: value for name, value in checkpoint["state_dict"].items() if name.startswith("net.")}
        agree = sizes_agree(config, tokenizer.vocab_size, weights)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is not a checkpoint that train.py wrote: settings or weights are missing") from error
    if not agree:
        raise UserError(f"the weights in {path} do not fit its settings: {config}")
    # On torch's meta device no weights would be drawn, but its first use imports for a second.
    with torch.random.fork_rng(devices=[]):
        model = build_model(config, tokenizer.vocab_size)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise UserError(f"the weights in {path} do not fit its settings: {config}") from error
    return model.to(device).eval(), tokenizer


def check_archive(path: Path) -> None:
    """Refuse what `torch.load` would not notice: bytes that changed, and an archive that grows when it is read
    (`torch.save` compresses nothing, so that is another's work).

    Raises:
        ValueError, OSError, zipfile.BadZipFile: the file is that, or no archive.
    """
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise ValueError("larger than its file")
        if (name := archive.testzip()) is not None:
            raise ValueError(f"{name} does not match its checksum")


def sizes_agree(config: dict[str, Any], vocab_size: int, weights: "dict[str, torch.Tensor]") -> bool:
    """Whether the sizes that a checkpoint claims are those of the weights that it holds.

    Asked before a model is built, since a claim of a billion layers costs nothing to write.

    Args:
        config: as `chargpt.model.build_model` takes it.
        vocab_size: distinct characters.
        weights: the model's state dict.

    Raises:
        KeyError, TypeError, AttributeError: settings or weights are missing.
    """
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    table = shapes["token_embedding_table.weight"]
    if config["name"] != "gpt":
        return table == (vocab_size, vocab_size)
    layers = {name.split(".")[1] for name in shapes if name.startswith("blocks.")}
    positions = shapes["position_embedding_table.weight"]
    sizes = [config[name] for name in ("block_size", "n_embd", "n_layer", "n_head")]
    return (
        all(type(size) is int for size in sizes)
        and table == (vocab_size, config["n_embd"])
        and positions == (config["block_size"], config["n_embd"])
        and len(layers) == config["n_layer"]
    )

"""From a checkpoint to a page: one HTML file with the model, what is known of it, and all that runs it."""

import base64
import copy
import datetime
import hashlib
import json
import math
import re
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from chargpt.checkpoint import Checkpoint, public_name, read_checkpoint
from chargpt.errors import NonFiniteError, UserError
from chargpt.generation import Sampling, generate
from chargpt.history import Point, read_losses, read_samples, thinned
from chargpt.model import GPT, Model
from chargpt.page.weights import Packed, pack
from chargpt.pictures import label
from chargpt.scoring import part_of_text, score

WORKER = ("weights.js", "model.js", "sampling.js", "worker.js")
PAGE = ("weights.js", "glyphs.js", "pictures.js", "main.js")
LARGEST = 200_000_000  # bytes of weights: one text of JavaScript's must hold them in base64
MOST_POINTS, MOST_SAMPLES = 1_000, 100  # of the curve, and of the samples along it
CHECKED = 32  # characters by which the page checks itself
MOST_LOGITS = 20_000  # that it compares, but for those of one character
MOST_PLACES = 500  # characters on the map


def build_page(path: Path, kind: str = "fp16") -> str:
    """The page of a checkpoint.

    Args:
        kind: of its weights: `fp16` or `int8`.

    Raises:
        UserError: the checkpoint cannot be used, or its weights are too many or too large.
        NonFiniteError: the model's outputs are not finite numbers.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.tokenizer.characters is None:
        raise UserError(f"{path} is a model of bytes, and the page shows models of characters")
    model = checkpoint.model.eval().float()  # as the page computes
    packed = pack(model.state_dict(), kind)
    if len(packed.content) > LARGEST:
        size, most = len(packed.content) / 1e6, LARGEST / 1e6
        raise UserError(f"the weights take {size:,.0f} MB in {kind}, more than the {most:,.0f} MB that a page holds")
    rounded = copy.deepcopy(model)
    rounded.load_state_dict(packed.rounded)
    facts = {
        **_told(checkpoint, path, packed, kind),
        "config": asdict(model.config),
        "characters": checkpoint.tokenizer.characters,
        "weights": {"tensors": packed.tensors},
        "check": _check(rounded, checkpoint),
        "rounding": _cost(checkpoint, rounded) if kind == "int8" else "",
        "places": _places(model.token_embedding_table.weight.detach())[:MOST_PLACES],
    }
    return filled(facts, base64.b64encode(packed.content).decode())


def _told(checkpoint: Checkpoint, path: Path, packed: Packed, kind: str) -> dict[str, Any]:
    """What the page says of the model and of its run."""
    folder = path.absolute().parent
    run = folder.parent if folder.name == "checkpoints" else folder
    curve, samples = read_losses(run), read_samples(run)
    best = min(curve, key=lambda point: point.val_loss, default=None)
    lowest = best.val_loss if best else checkpoint.best_loss
    model, scoring = checkpoint.model, checkpoint.scoring
    parameters = f"{sum(weight.numel() for weight in model.parameters()):,} parameters"
    name = public_name(checkpoint.text.get("name", "an unnamed text"))
    sizes = ""
    if isinstance(model, GPT):
        config = model.config
        sizes = f", {config.n_layer} layers of {config.n_head} heads, {config.n_embd} channels"
        sizes += f", a context of {config.block_size:,} characters"
    loss = "" if lowest is None else f"{lowest:.4f} nats ({lowest / math.log(2):.4f} bits) per character"
    told = [
        ("Characters", "".join(map(label, (checkpoint.tokenizer.characters or "")[:MOST_PLACES]))),
        ("Trained on", name),
        ("SHA-256 of the text", checkpoint.text.get("sha256", "not known")[:64]),
        ("Validated on", _validated_on(checkpoint)),
        ("Best validation loss of the run", f"{loss}, after {best.step:,} steps" if best else loss or "not known"),
        ("Steps", "not known" if checkpoint.step is None else f"{checkpoint.step:,}"),
        ("Weights saved on", _day(path.stat().st_mtime)),
        ("Precision in training", scoring.precision),
        ("Weights in this page", f"{parameters} in {kind}, {len(packed.content) / 1e6:.1f} MB"),
    ]
    settings = [
        *((f"scoring.{key}", str(value)) for key, value in asdict(scoring).items()),
        *((f"model.{key}", str(value)) for key, value in asdict(model.config).items()),
        *((f"optimizer.{key}", str(value)) for key, value in checkpoint.optimizer.items()),
    ]
    return {
        "name": name,
        "summary": f"{parameters}{sizes}" + (f"; best validation loss of its run {loss}" if loss else ""),
        "told": [(*each, "facts") for each in told] + [(*each, "settings") for each in settings],
        "best": best and best.val_loss,
        "curve": [[point.step, _finite(point.train_loss), point.val_loss] for point in thinned(curve, MOST_POINTS)],
        "curve_in_words": _in_words(curve),
        "samples": [[sample.step, sample.text] for sample in thinned(samples, MOST_SAMPLES)],
    }


def _validated_on(checkpoint: Checkpoint) -> str:
    """Which part of its text, or which other text."""
    if own := checkpoint.text.get("val_name"):
        return public_name(own)
    _, share, *test = checkpoint.scoring.split
    if test:
        return f"the {100 * share:.3g}% of it before the last {100 * test[0]:.3g}%, which test"
    return f"its last {100 * share:.3g}%"


def _day(seconds: float) -> str:
    """The date of a file, which an archive may have set to any."""
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%d %B %Y")
    except (ValueError, OverflowError, OSError):
        return "not known"


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _in_words(curve: list[Point]) -> str:
    if not curve:
        return ""
    first, last = curve[0], curve[-1]
    return (
        f"Validation loss {first.val_loss:.4f} after {first.step:,} steps, {last.val_loss:.4f} after {last.step:,};"
        f" the lowest is {min(point.val_loss for point in curve):.4f}"
    )


@torch.inference_mode()
def _check(model: Model, checkpoint: Checkpoint) -> dict[str, Any]:
    """A text of the model's own, and the logits that it has in PyTorch, with the very weights of the page."""
    start = checkpoint.tokenizer.encode("\n", skip_unknown=True) or [0]
    length = min(CHECKED, model.config.block_size)
    ids = torch.tensor([start])
    if length > 1:
        generator = torch.Generator().manual_seed(0)
        tokens = list(generate(model, ids, Sampling(max_new_tokens=length - 1), generator))
        ids = torch.cat([ids, torch.stack(tokens, 1)], 1)  # (1, length)
    logits = model(ids)[0]  # (length, vocab_size)
    if not logits.isfinite().all():
        raise NonFiniteError("the model's outputs are not finite numbers")
    some = logits[-max(1, MOST_LOGITS // logits.shape[1]) :]
    return {"ids": ids[0].tolist(), "logits": base64.b64encode(some.contiguous().numpy().tobytes()).decode()}


def _cost(checkpoint: Checkpoint, rounded: Model) -> str:
    """What the rounding of the weights does to the validation loss, where the text is at hand."""
    found = part_of_text(checkpoint, "val", skip_unknown=True)
    if found is None:
        return "What int8 costs in validation loss is not known: the text was not at hand."
    exact, loss = (score(model, found[0], checkpoint.scoring).loss for model in (checkpoint.model, rounded))
    return f"In int8 its validation loss is {loss:.4f} instead of {exact:.4f}."


def _places(embeddings: Tensor) -> list[list[float]]:
    """Where characters stand on a map: their embeddings, (vocab_size, C), along the two directions in which they
    differ most; either is stretched to [-1, 1]."""
    embeddings = embeddings.double()
    centered = embeddings - embeddings.mean(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left, lengths, _ = torch.svd_lowrank(centered, q=min(6, *centered.shape), niter=8)
    places = torch.zeros(len(centered), 2, dtype=torch.float64)
    found = (left * lengths)[:, :2]
    places[:, : found.shape[1]] = found
    least, most = places.aminmax(dim=0)
    places = 2 * (places - least) / (most - least).clamp(min=1e-12) - 1
    return [[round(x, 4), round(y, 4)] for x, y in places.tolist()]


def filled(facts: dict[str, Any], weights: str) -> str:
    """The HTML file.

    Args:
        facts: the model's configuration, vocabulary, table of weights and so on, as the scripts read them.
        weights: in base64.
    """
    style, script = _read("page.css"), f'"use strict";\n{{\n{bundle(PAGE)}\nopen();\n}}\n'
    rules = {
        "default-src": "'none'",
        "script-src": f"'{_hash(script)}'",
        "style-src": f"'{_hash(style)}'",
        "worker-src": "blob:",
        "child-src": "blob:",  # of browsers that do not know worker-src
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    parts = {
        "policy": "; ".join(f"{name} {value}" for name, value in rules.items()),
        "style": style,
        # Of what comes from outside only this is in the page, and it has no character that HTML knows.
        "facts": json.dumps(facts, allow_nan=False).replace("<", "\\u003c").replace("&", "\\u0026"),
        "weights": weights,
        "worker": f'"use strict";\n{{\n{bundle(WORKER)}\nlisten(self);\n}}\n',
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda slot: parts[slot[1]], _read("page.html"))


def bundle(names: tuple[str, ...]) -> str:
    """The modules of those names as one script, less their imports: a page from the disk may load no modules."""
    return "\n".join(re.sub(r"^import .*$|^export ", "", _read(name), flags=re.MULTILINE) for name in names)


def _read(name: str) -> str:
    return (files("chargpt.page") / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"

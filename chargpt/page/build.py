"""From a checkpoint to a page: one HTML file with the model, facts about it, and the scripts that run it."""

import base64
import copy
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from chargpt.checkpoint import Checkpoint, public_name, read_checkpoint
from chargpt.errors import NonFiniteError, UserError
from chargpt.generation import Sampling, generate
from chargpt.history import best_of, read_losses, read_samples
from chargpt.model import GPT, Model, ModelConfig
from chargpt.tokenizer import visible

WORKER = ("weights.js", "model.js", "sampling.js", "worker.js")
PAGE = ("weights.js", "glyphs.js", "pictures.js", "text.js", "writing.js", "character.js", "attention.js", "main.js")
KINDS = ("fp16", "int8")
ALIGNED = 4  # bytes, for JavaScript's typed arrays
CHECKED = 32  # characters in the page's check of itself
MOST_PLACES = 500  # characters on the map


class Packed(NamedTuple):
    """The bytes of all weights; each tensor's name, shape, kind and offsets in them; and the rounded weights, fp32."""

    content: bytes
    tensors: list[dict[str, Any]]
    rounded: dict[str, Tensor]


def pack(weights: Mapping[str, Tensor], kind: str) -> Packed:
    """Round the weights of a model to `fp16`, or to `int8`: whole numbers of -127 to 127 with a float32 scale for each
    row of a matrix, while vectors, which are few, stay in fp16."""
    content, tensors, rounded = bytearray(), [], {}

    def store(numbers: Tensor) -> int:
        content.extend(bytes(-len(content) % ALIGNED))
        offset = len(content)
        content.extend(numbers.contiguous().numpy().tobytes())
        return offset

    for name, weight in weights.items():
        weight = weight.float().cpu()
        tensor = {"name": name, "shape": list(weight.shape)}
        if kind == "int8" and weight.dim() > 1:
            scales = (weight.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)  # (rows,)
            numbers = (weight / scales[:, None]).round().clamp(-127, 127).to(torch.int8)
            rounded[name] = numbers.float() * scales[:, None]
            tensors.append(tensor | {"kind": "int8", "scales": store(scales), "offset": store(numbers)})
        else:
            rounded[name] = weight.half().float()
            tensors.append(tensor | {"kind": "fp16", "offset": store(weight.half())})
    return Packed(bytes(content), tensors, rounded)


def build_page(path: Path, kind: str = "fp16") -> str:
    """The page of a checkpoint, with weights in `fp16` or `int8`."""
    checkpoint = read_checkpoint(path)
    tokenizer, model = checkpoint.tokenizer, checkpoint.model.eval().float()  # as the page computes
    if tokenizer.characters is None:
        raise UserError(f"{path} is a model of bytes, and the page shows models of characters")
    check_options(model.config)
    packed = pack(model.state_dict(), kind)
    rounded = copy.deepcopy(model)
    rounded.load_state_dict(packed.rounded)
    facts = {
        **_about(checkpoint, path, f"{kind}, {len(packed.content) / 1e6:,.1f} MB"),
        "config": asdict(model.config),
        "characters": tokenizer.characters,
        "weights": {"tensors": packed.tensors},
        "check": _check(rounded, checkpoint),
        "places": _places(model.token_embedding_table.weight.detach()[:MOST_PLACES]),
    }
    return filled(facts, base64.b64encode(packed.content).decode())


def check_options(config: ModelConfig) -> None:
    """Refuse a model with an option that `model.js` does not know."""
    [known] = re.findall(r"^export const OPTIONS = (\[.*?\]);", _read("model.js"), re.MULTILINE | re.DOTALL)
    if unknown := asdict(config).keys() - json.loads(known):
        raise UserError(f"chargpt/page/model.js does not know model.{min(unknown)}: add the option to it")


def _about(checkpoint: Checkpoint, path: Path, weights: str) -> dict[str, Any]:
    """Facts about the model and its run, as the page shows them."""
    folder = path.absolute().parent
    run = folder.parent if folder.name == "checkpoints" else folder
    curve = read_losses(run)
    model, text, characters = checkpoint.model, checkpoint.text, checkpoint.tokenizer.characters or ""
    parameters = f"{sum(weight.numel() for weight in model.parameters()):,} parameters"
    summary, best = parameters, best_of(curve)
    if isinstance(model, GPT):
        sizes = "{n_layer} layers of {n_head} heads, {n_embd} channels, a context of {block_size:,} characters"
        summary += f", {sizes.format(**asdict(model.config))}"
    lowest, loss = best.val_loss if best else checkpoint.best_loss, None
    if lowest is not None:
        loss = f"{lowest:.4f} nats ({lowest / math.log(2):.4f} bits) per character"
        summary += f"; best validation loss of its run {loss}"
    facts = {
        "Characters": "".join(map(visible, characters[:MOST_PLACES])),
        "Trained on": public_name(text.get("name", "an unnamed text")),
        "Validated on": public_name(text["val_name"]) if "val_name" in text else None,
        "SHA-256 of the text": text.get("sha256", "not known")[:64],
        "Best validation loss of the run": f"{loss}, after {best.step:,} steps" if best else loss,
        "Steps": checkpoint.step and f"{checkpoint.step:,}",
        "Precision in training": checkpoint.scoring.precision,
        "Weights in this page": f"{parameters} in {weights}",
    }
    groups = {"scoring": asdict(checkpoint.scoring), "model": asdict(model.config), "optimizer": checkpoint.optimizer}
    return {
        "name": facts["Trained on"],
        "summary": summary,
        "facts": [(name, value) for name, value in facts.items() if value],
        "settings": [(f"{group}.{key}", str(each)) for group in groups for key, each in groups[group].items()],
        "best": best and best.val_loss,
        "curve": [[p.step, p.train_loss if math.isfinite(p.train_loss) else None, p.val_loss] for p in curve],
        "samples": [[sample.step, sample.text] for sample in read_samples(run)],
    }


@torch.inference_mode()
def _check(model: Model, checkpoint: Checkpoint) -> dict[str, Any]:
    """A text that the model writes and its logits in PyTorch, by the page's weights: the page compares its own."""
    start = checkpoint.tokenizer.encode("\n", skip_unknown=True) or [0]
    ids = torch.tensor([start])
    if (length := min(CHECKED, model.config.block_size)) > 1:
        tokens = generate(model, ids, Sampling(max_new_tokens=length - 1), torch.Generator().manual_seed(0))
        ids = torch.cat([ids, torch.stack(list(tokens), 1)], 1)  # (1, length)
    logits = model(ids)[0]  # (length, vocab_size)
    if not logits.isfinite().all():
        raise NonFiniteError("the model's outputs are not finite numbers")
    return {"ids": ids[0].tolist(), "logits": base64.b64encode(logits.contiguous().numpy().tobytes()).decode()}


def _places(embeddings: Tensor) -> list[list[float]]:
    """Where characters stand on a map: their embeddings, (vocab_size, C), along the two directions in which they differ
    most (PCA), each stretched to [-1, 1]."""
    left, lengths, _ = torch.linalg.svd(embeddings.double() - embeddings.double().mean(0), full_matrices=False)
    places = F.pad(left * lengths, (0, 1))[:, :2]  # a vocabulary of one character has one direction
    least, most = places.aminmax(dim=0)
    places = 2 * (places - least) / (most - least).clamp(min=1e-12) - 1
    return [[round(x, 4), round(y, 4)] for x, y in places.tolist()]


def filled(facts: dict[str, Any], weights: str) -> str:
    """The HTML file, from what its scripts read: facts, and weights in base64."""
    style, script = _read("page.css"), f'"use strict";\n{{\n{bundle(PAGE)}\nopen();\n}}\n'
    parts = {
        "script_hash": _hash(script),
        "style_hash": _hash(style),
        "style": style,
        # Only this comes from outside, and it has no character with a meaning in HTML.
        "facts": json.dumps(facts, allow_nan=False).replace("<", "\\u003c").replace("&", "\\u0026"),
        "weights": weights,
        "worker": f'"use strict";\n{{\n{bundle(WORKER)}\nlisten(self);\n}}\n',
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda slot: parts[slot[1]], _read("page.html"))


def bundle(names: tuple[str, ...]) -> str:
    """These modules as one script, without their imports: a page opened from a disk may not load modules."""
    return "\n".join(re.sub(r"^import .*$|^export ", "", _read(name), flags=re.MULTILINE) for name in names)


def _read(name: str) -> str:
    return (files("chargpt.page") / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"

"""Share a trained model: `python -m chargpt.share my-model` writes a folder that needs nothing of this project."""

import argparse
import json
import os
import shlex
import stat
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from chargpt.checkpoint import find_checkpoint, public_name
from chargpt.command_line import Parser, file_name
from chargpt.errors import UserError, tell
from chargpt.files import write_all
from chargpt.shared import CARD, CONFIG, FILES, FORMAT, LONGEST, WEIGHTS, SharedConfig, read_config

if TYPE_CHECKING:
    from chargpt.checkpoint import Checkpoint
    from chargpt.model import ModelConfig


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        Its exit status.
    """
    return build_parser().run(share, argv)


def build_parser() -> Parser:
    parser = Parser(
        prog="python -m chargpt.share",
        description="Write a trained model into a folder that people can use without this project.",
    )
    parser.add_argument(
        "--ckpt", type=file_name, metavar="RUN_OR_FILE", help="a run's folder or a checkpoint (default: newest run)"
    )
    parser.add_argument(
        "folder", type=file_name, metavar="DIR", help="a new or empty folder, or one that this command wrote"
    )
    return parser


def share(arguments: argparse.Namespace) -> None:
    """Write the folder that the arguments ask for.

    Raises:
        UserError: the checkpoint cannot be used, or the folder holds something else or cannot be written.
    """
    from chargpt.checkpoint import read_checkpoint

    path, folder = find_checkpoint(arguments.ckpt), Path(arguments.folder)
    if arguments.ckpt is None:
        tell(f"Sharing {path}")
    try:
        check_free(folder)
        checkpoint = read_checkpoint(path)
        contents = contents_of(checkpoint)
        folder.mkdir(parents=True, exist_ok=True)
        check_free(folder)  # reading took a while
        write_all({folder / name: content for name, content in contents.items()})
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error
    trained_on = f", trained on {checkpoint.text['name']}" if checkpoint.text else ""
    tell(f"Wrote {folder}{trained_on}. To sample it: python sample.py --ckpt {shlex.quote(str(folder))}")


def check_free(folder: Path) -> None:
    """Refuse a folder in which something else than an earlier share would be lost, or would lie beside it.

    Raises:
        OSError: it cannot be looked into.
        UserError: it is no folder, or holds anything else.
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder")
    names = sorted(os.listdir(folder))
    if names and not is_shared(folder, names):
        other = next((name for name in names if name not in FILES), names[0])
        raise UserError(
            f"the folder {folder} holds {other}, and is not what this command wrote before: name a new folder"
        )


def is_shared(folder: Path, names: list[str]) -> bool:
    """Whether a folder with these names is one that this command wrote."""
    if set(names) != set(FILES) or not all(stat.S_ISREG((folder / name).lstat().st_mode) for name in names):
        return False
    try:
        read_config(folder / CONFIG)
    except UserError:
        return False
    return True


def contents_of(checkpoint: "Checkpoint") -> dict[str, bytes]:
    """The files of a folder, by name.

    Raises:
        UserError: the characters and settings are more than can be read again.
    """
    from safetensors.torch import save

    text = dict(checkpoint.text)
    text |= {key: public_name(name) for key, name in text.items() if key.endswith("name")}
    config = SharedConfig(
        FORMAT,
        asdict(checkpoint.model.config),
        checkpoint.tokenizer.characters,
        text,
        asdict(checkpoint.scoring),
        checkpoint.best_loss,
        checkpoint.step,
    )
    as_json = json.dumps(asdict(config), indent=2).encode()
    if len(as_json) > LONGEST:
        raise UserError(f"its characters and settings are too many to be shared: {len(as_json):,} bytes")
    parameters = sum(weight.numel() for weight in checkpoint.model.parameters())
    card = card_of(config, checkpoint.model.config, parameters)
    # Copies, since a stranger's tensors may share memory.
    weights = {name: weight.clone() for name, weight in checkpoint.model.state_dict().items()}
    return {WEIGHTS: save(weights, {"format": "pt"}), CONFIG: as_json, CARD: card.encode()}


def card_of(config: SharedConfig, model: "ModelConfig", parameters: int) -> str:
    """What people read of a model, in Markdown. What a stranger may have written stands in lines that are indented, in
    which nothing is markup."""
    facts = {
        "parameters": f"{parameters:,}",
        "model": ", ".join(f"{key}={value}" for key, value in config.model.items()),
        "vocabulary": "bytes"
        if config.characters is None
        else f"{len(config.characters):,} characters: {json.dumps(config.characters[:200])}",
        "trained on": config.text["name"][:200] if config.text else "not known",
        "its SHA-256": config.text["sha256"][:200] if config.text else "not known",
        "steps": "not known" if config.step is None else f"{config.step:,}",
        "best loss": "not known" if config.best_loss is None else f"{config.best_loss:.4f}",
        "scored with": ", ".join(f"{key}={value}" for key, value in config.scoring.items()),
    }
    lines = "\n".join(f"{name + ':':<13}{value}" for name, value in facts.items())
    of = "byte" if config.characters is None else "character"
    return CARD_TEXT.format(of=of, facts=textwrap.indent(lines, "    "), code=code_of(model, config.characters is None))


CARD_TEXT = """# A {of}-level language model

It gives the probabilities of the next {of} of a text.

{facts}

The best loss is the lowest validation loss of the run up to these weights: nats per {of}, over the second share of
`split` of the text, or over a text of its own.

`model.safetensors` holds the weights, `config.json` the settings and the characters, in order of id (null where the ids
are bytes). No other file, and no package but PyTorch and safetensors, is needed. In this folder, this writes 200 {of}s:

```python
{code}```
"""

START = """\
import json

import torch
from safetensors.torch import load_file
from torch.nn import functional as F

with open("config.json", encoding="utf-8") as file:
    config = json.load(file)
block_size = config["model"]["block_size"]
weights = load_file("model.safetensors")


"""
BIGRAM = """\
def logits(ids):
    \"\"\"Those of the character after each one: ids (B, T) to (B, T, number of characters).\"\"\"
    return weights["token_embedding_table.weight"][ids]


"""
PARTS = """\
def norm(x, name):
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])


def linear(x, name):
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


"""
SHIFT = """\
def shift(x):
    \"\"\"The first half of the channels comes from the character before.\"\"\"
    half = x.shape[-1] // 2
    return torch.cat([F.pad(x[:, :-1, :half], (0, 0, 1, 0)), x[:, :, half:]], -1)


"""
TURN = """\
def turn(x):
    \"\"\"Rotary positions: pairs of channels of x, (B, heads, T, head size), turn with the position.\"\"\"
    speeds = {base} ** -(torch.arange(0, x.shape[-1], 2) / x.shape[-1])
    angles = torch.outer(torch.arange(x.shape[-2]), speeds)
    (a, b), cos, sin = x.unflatten(-1, (-1, 2)).unbind(-1), angles.cos(), angles.sin()
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)


"""
GPT = """\
def logits(ids):
    \"\"\"Those of the character after each one: ids (B, T), T up to block_size, to (B, T, number of characters).\"\"\"
    x = weights["token_embedding_table.weight"][ids]  # (B, T, channels)
{positions}    for n in range(config["model"]["n_layer"]):
        block = f"blocks.{{n}}"
        qkv = linear({before_attention}, f"{{block}}.sa.qkv")  # (B, T, 3 * channels)
        q, k, v = qkv.unflatten(-1, (3, config["model"]["n_head"], -1)).permute(2, 0, 3, 1, 4)  # (B, heads, T, size)
        heads = F.scaled_dot_product_attention({q}, {k}, v, is_causal=True)
        x = x + linear(heads.transpose(1, 2).flatten(2), f"{{block}}.sa.proj")
        hidden = F.relu(linear({before_hidden}, f"{{block}}.ffwd.net.0"))
        x = x + linear(hidden, f"{{block}}.ffwd.net.2")
    return linear(norm(x, "ln_f"), "lm_head")


"""
LEARNED = """\
    x = x + weights["position_embedding_table.weight"][: ids.shape[1]]
"""
END = """\
ids = torch.tensor([[0]])
for _ in range(200):
    probabilities = logits(ids[:, -block_size:])[:, -1].float().softmax(-1)
    ids = torch.cat([ids, torch.multinomial(probabilities, 1)], 1)
"""
OF_CHARACTERS = """\
print("".join(config["characters"][i] for i in ids[0]))
"""
OF_BYTES = """\
print(bytes(ids[0].tolist()).decode(errors="replace"))
"""


def code_of(model: "ModelConfig", of_bytes: bool) -> str:
    """The model in plain PyTorch: the parts that its settings need; nothing of a stranger's gets into it."""
    from chargpt.attention import ROTARY_BASE
    from chargpt.model import GPTConfig

    end = END + (OF_BYTES if of_bytes else OF_CHARACTERS)
    if not isinstance(model, GPTConfig):
        return START + BIGRAM + end
    rotary = model.positions == "rotary"
    norms = ['norm(x, f"{block}.ln1")', 'norm(x, f"{block}.ln2")']
    before_attention, before_hidden = [f"shift({norm})" if model.token_shift else norm for norm in norms]
    gpt = GPT.format(
        positions="" if rotary else LEARNED,
        before_attention=before_attention,
        before_hidden=before_hidden,
        q="turn(q)" if rotary else "q",
        k="turn(k)" if rotary else "k",
    )
    parts = [PARTS, SHIFT if model.token_shift else "", TURN.format(base=ROTARY_BASE) if rotary else "", gpt]
    return START + "".join(parts) + end


if __name__ == "__main__":
    sys.exit(main())

"""Share a trained model: `python -m chargpt.share my-model` writes a folder that can be used without this project."""

import argparse
import copy
import inspect
import json
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from chargpt import card
from chargpt.checkpoint import CONFIG, WEIGHTS, Checkpoint, find_checkpoint, public_name, read_checkpoint
from chargpt.command_line import CKPT, Parser, file_name, quoted
from chargpt.errors import UserError, tell
from chargpt.files import write


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = Parser(prog="python -m chargpt.share", description="Write a trained model for use without this project.")
    parser.add_argument("--ckpt", **CKPT)
    parser.add_argument("folder", type=file_name, metavar="DIR", help="a new or empty folder")
    return parser.run(share, argv)


def share(arguments: argparse.Namespace) -> None:
    """Write the folder."""
    path, folder = find_checkpoint(arguments.ckpt), Path(arguments.folder)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: name a new folder")
    files = contents(read_checkpoint(path))
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write(folder / name, content)
    tell(f"Wrote {folder}. To sample it: python sample.py --ckpt {quoted([str(folder)])}")


def contents(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The files of a folder, by name: the weights first, so that a full disk shows before anything else is written."""
    config: dict[str, Any] = {
        "model": asdict(checkpoint.model.config),
        "characters": checkpoint.tokenizer.characters,
        "text": {key: public_name(each) if key.endswith("name") else each for key, each in checkpoint.text.items()},
        "scoring": asdict(checkpoint.scoring),
        "best_loss": checkpoint.best_loss,
        "step": checkpoint.step,
    }
    weights = save(checkpoint.model.state_dict(), {"format": "pt"})
    check_card(checkpoint, config["model"], weights)
    # As JSON, which escapes a stranger's text, in an indented block, where nothing is markup
    facts = {key: value for key, value in config.items() if key != "characters"}
    facts["parameters"] = sum(weight.numel() for weight in checkpoint.model.parameters())
    shown = textwrap.indent(json.dumps(facts, indent=2), "    ")
    template = Path(__file__).with_name("share.md").read_text(encoding="utf-8")
    readme = template.format(unit=checkpoint.tokenizer.unit, facts=shown, code=inspect.getsource(card))
    return {WEIGHTS: weights, CONFIG: json.dumps(config, indent=2).encode(), "README.md": readme.encode()}


@torch.no_grad()
def check_card(checkpoint: Checkpoint, config: dict[str, Any], weights: bytes) -> None:
    """Refuse a model whose logits `card.py` does not compute from the shared weights: it lacks an option."""
    model = copy.deepcopy(checkpoint.model).float().eval()
    ids = torch.arange(min(model.config.block_size, 64))[None] % checkpoint.tokenizer.vocab_size
    expected = model(ids)
    found = card.logits(ids, config, {name: weight.float() for name, weight in load(weights).items()})
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        raise UserError(f"chargpt/card.py does not compute {model.config}: add the option to it")


if __name__ == "__main__":
    sys.exit(main())

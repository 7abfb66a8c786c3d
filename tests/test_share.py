"""A shared folder: the same model, also by its own program; files that people put there are not overwritten."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import assert_same
from safetensors.torch import load_file, save_file

from chargpt import card, share
from chargpt.checkpoint import Checkpoint, EvalSettings, find_checkpoint, load_checkpoint, read_checkpoint
from chargpt.errors import UserError
from chargpt.model import BigramConfig, GPTConfig, build_model
from chargpt.tokenizer import tokenizer_of

CHARACTERS = "\n !abcdefgh"
FILES = ("README.md", "config.json", "model.safetensors")
SIZES = {"block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16}
BOTH = {"positions": "rotary", "token_shift": True}
CONFIGS = [
    *(GPTConfig(**SIZES, **options) for options in ({}, {"positions": "rotary"}, {"token_shift": True}, BOTH)),
    GPTConfig(**SIZES, zero_init=True),
    BigramConfig(block_size=8),
]
TEXT = {f"{part}{key}": f"a/{part}{key}" for part in ("", "val_", "test_") for key in ("name", "sha256")}


def checkpoint_of(config, characters=CHARACTERS, text=TEXT):
    """A model whose weights are random, none of them zero."""
    torch.manual_seed(0)
    tokenizer = tokenizer_of(characters)
    model = build_model(config, tokenizer.vocab_size).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return Checkpoint(model, tokenizer, text, EvalSettings([0.8, 0.2], 16, "bf16-mixed"), 1.5, 7)


def write(folder, checkpoint):
    folder.mkdir(exist_ok=True)
    for name, content in share.contents(checkpoint).items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def saved(tiny_run, tmp_path):
    return shutil.copy(tiny_run / "checkpoints" / "best.ckpt", tmp_path / "saved.ckpt")


@pytest.fixture
def shared(saved, tmp_path):
    assert share.main(["--ckpt", str(saved), str(tmp_path / "a" / "shared")]) == 0
    return tmp_path / "a" / "shared"


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_the_same_model_to_the_last_bit(kind, saved, tmp_path):
    content = torch.load(saved, weights_only=True)
    weights = {name: weight.to(kind) for name, weight in content["state_dict"].items()}
    content["state_dict"] = weights
    scoring = {"split": [0.8, 0.2], "batch_size": 16, "precision": "bf16-mixed"}
    content["hyper_parameters"] |= {"corpus": TEXT, "scoring": scoring}
    torch.save(content, saved)
    shared = tmp_path / "shared"
    assert share.main(["--ckpt", str(saved), str(shared)]) == 0
    assert tuple(sorted(os.listdir(shared))) == FILES
    before, after = read_checkpoint(saved), read_checkpoint(find_checkpoint(shared))
    assert after.model.config == before.model.config
    assert after.tokenizer.characters == before.tokenizer.characters
    assert after.scoring == before.scoring
    assert (after.best_loss, after.step) == (before.best_loss, 6)
    names = {key: value.removeprefix("a/") for key, value in TEXT.items() if key.endswith("name")}
    assert after.text == TEXT | names
    weights = {name.removeprefix("net."): weight for name, weight in weights.items() if "net." in name}
    for found in (before.model.state_dict(), after.model.state_dict(), load_file(shared / "model.safetensors")):
        assert_same(dict(found), weights)


@pytest.mark.parametrize(("config", "characters"), [*((each, CHARACTERS) for each in CONFIGS), (CONFIGS[0], None)])
def test_the_card_computes_the_same_as_the_model(config, characters, tmp_path):
    checkpoint = checkpoint_of(config, characters)
    folder = write(tmp_path, checkpoint)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model"]
    for T in (1, 8):
        ids = torch.randint(checkpoint.tokenizer.vocab_size, (3, T))
        found = card.logits(ids, settings, load_file(folder / "model.safetensors"))
        with torch.no_grad():
            torch.testing.assert_close(found, checkpoint.model(ids), rtol=0, atol=1e-5)


def test_the_card_knows_every_option():
    """A new option of the model belongs there, or among those that do not change the function of trained weights."""
    source = Path(card.__file__).read_text(encoding="utf-8")
    for field in dataclasses.fields(GPTConfig):
        assert field.name in {"name", "dropout", "zero_init"} or f'"{field.name}"' in source, field.name


@pytest.mark.processes
@pytest.mark.parametrize(("config", "characters"), [(CONFIGS[3], CHARACTERS), (CONFIGS[5], None)])
def test_the_readmes_program_writes_text(config, characters, tmp_path):
    """In the folder, without this project."""
    folder = write(tmp_path, checkpoint_of(config, characters))
    [code] = re.findall(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert "chargpt" not in code
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=folder, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert characters is None or (len(done.stdout), set(done.stdout) - {"\n"} <= set(characters)) == (202, True)
    assert done.stdout.strip()


def test_a_model_that_the_card_does_not_compute_is_not_shared(saved, tmp_path, monkeypatch, caplog):
    """As with another activation, which the card lacks."""
    monkeypatch.setattr(torch.nn.ReLU, "forward", lambda self, x: torch.nn.functional.gelu(x))
    assert share.main(["--ckpt", str(saved), str(tmp_path / "shared")]) == 2
    assert "card.py does not compute" in caplog.messages[-1]
    assert not (tmp_path / "shared").exists()


NAMES = [
    "```\n# Hello\n<script>alert(1)</script>", "</code></pre><img src=x onerror=a>", "a\u2028# b\x85# d\r# e", "\ud800",
    "{code}{0.__class__}", "\x1b[31m", "---\nlicense: x\n---",
]  # fmt: skip


def test_text_of_a_stranger_is_no_markup():
    """It stays in its indented line."""
    cards = []
    for name, characters in (("a", "ab"), *((name, "\n\x1b#<`ab\u2028") for name in NAMES)):
        checkpoint = checkpoint_of(BigramConfig(), characters, {"name": name, "sha256": name})
        checkpoint.scoring.precision = name
        cards.append(share.contents(checkpoint)["README.md"].decode().splitlines())
    plain, *others = [[line for line in lines if not line.startswith("    ")] for lines in cards]
    assert all(other == plain for other in others)
    assert {len(lines) for lines in cards} == {len(cards[0])}


def test_nobodys_work_is_lost(saved, shared, tmp_path, monkeypatch, caplog):
    """Also if it is another README.md in the folder."""
    (shared / "README.md").write_text("mine")
    assert share.main(["--ckpt", str(saved), str(shared)]) == 2
    assert "name a new folder" in caplog.messages[-1]
    for folder in (shared / "README.md", shared / "README.md" / "folder"):
        assert share.main(["--ckpt", str(saved), str(folder)]) == 2
    assert (shared / "README.md").read_text() == "mine"
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert share.main(["--ckpt", str(saved), str(tmp_path / "full")]) == 2
    assert "No space left on device" in caplog.messages[-1]
    assert os.listdir(tmp_path / "full") == []


def refused(folder):
    with pytest.raises(UserError) as error:
        load_checkpoint(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_foreign_or_edited_config(shared):
    """The same checks as of a checkpoint."""
    config = json.loads((shared / "config.json").read_bytes())
    changes = ({"model": {"name": "gpt", "activation": "gelu"}}, {"step": "7"}, {"text": 5})
    edited = (json.dumps(config | change).encode() for change in changes)
    for content in (b"{", b"[" * 100_000, b"[1]", b'{"model_type": "gpt2"}', *edited):
        (shared / "config.json").write_bytes(content)
        refused(shared)


def test_damaged_weights(shared):
    path = shared / "model.safetensors"
    content, weights = path.read_bytes(), load_file(path)
    for bad in (b"", content[:7], content[:100], content[:-1], content + b"a", b"\xff" * 8 + content[8:]):
        path.write_bytes(bad)
        refused(shared)
    save_file(weights | {"lm_head.bias": torch.zeros(7)}, path)
    refused(shared)
    path.unlink()
    refused(shared)

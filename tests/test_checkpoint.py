"""Checkpoints: read back as saved, found, and refused in one line if damaged or foreign."""

import functools
import os
import pickle
from dataclasses import asdict

import pytest
import torch
from helpers import assert_same
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from chargpt.checkpoint import EvalSettings, find_checkpoint, load, load_checkpoint, public_name, read_checkpoint
from chargpt.errors import UserError
from chargpt.model import GPTConfig
from chargpt.module import CharLM
from chargpt.optim import AdamWConfig

CHARACTERS = "\n abc"
CONFIG = GPTConfig(block_size=4, n_layer=1, n_head=1, n_embd=4)
TEXT = {"name": "/home/me/verse.txt", "sha256": "0" * 64}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint that Lightning wrote after two steps and a validation, and its module."""
    scoring = {"split": [0.8, 0.1, 0.1], "batch_size": 2, "precision": "32-true"}
    module = CharLM(CONFIG, AdamWConfig(), CHARACTERS, TEXT, scoring)
    blocks = DataLoader([(torch.tensor([0, 1, 2, 3]), torch.tensor([1, 2, 3, 4]))] * 8, batch_size=2)
    folder = tmp_path_factory.mktemp("saved")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(max_steps=2, default_root_dir=folder, val_check_interval=2, log_every_n_steps=1, **quiet)
    trainer.fit(module, blocks, blocks)
    trainer.save_checkpoint(folder / "saved.ckpt")
    return folder / "saved.ckpt", module


@pytest.fixture
def contents(saved):
    return torch.load(saved[0], weights_only=True)


def test_what_lightning_saved(saved):
    path, module = saved
    checkpoint = read_checkpoint(path)
    assert checkpoint.model.config == CONFIG
    assert checkpoint.tokenizer.characters == CHARACTERS
    assert checkpoint.text == TEXT
    assert checkpoint.scoring == EvalSettings([0.8, 0.1, 0.1], 2)
    assert checkpoint.best_loss == pytest.approx(module.best_val_loss.compute().item())
    assert checkpoint.step == 2
    assert checkpoint.optimizer == asdict(AdamWConfig())
    assert_same(checkpoint.model.state_dict(), module.net.state_dict())


def test_load_checkpoint_is_ready_to_use(saved):
    """It can also be trained on, and leaves the caller's random numbers alone."""
    before = torch.get_rng_state()
    model, tokenizer = load_checkpoint(saved[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training
    assert all(weight.requires_grad for weight in model.parameters())
    assert model(torch.tensor([tokenizer.encode("abc")])).shape == (1, 3, 5)


def test_the_lectures_keys_and_as_little_as_is_needed(contents, tmp_path):
    """An option that a file lacks has its default; a run that was not validated has no best loss."""
    weights = contents["state_dict"]
    qkv = weights.pop("net.blocks.0.sa.qkv.weight")
    for part, weight in zip(("query", "key", "value"), qkv.chunk(3), strict=True):
        weights[f"net.blocks.0.sa.heads.0.{part}.weight"] = weight.clone()
    del weights["best_val_loss.min_value"]
    settings = {"name": "gpt", "block_size": 4, "n_layer": 1, "n_head": 1, "n_embd": 4}
    little = {"hyper_parameters": {"model": settings, "characters": CHARACTERS}, "state_dict": weights}
    torch.save(little, tmp_path / "lecture.ckpt")
    checkpoint = read_checkpoint(tmp_path / "lecture.ckpt")
    assert torch.equal(checkpoint.model.blocks[0].sa.qkv.weight, qkv)
    assert (checkpoint.model.config, checkpoint.text, checkpoint.scoring) == (CONFIG, {}, EvalSettings())
    assert (checkpoint.best_loss, checkpoint.step, checkpoint.optimizer) == (None, None, {})


def touch(path, when):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (when, when))
    return path


def test_find_the_newest_run(tmp_path):
    outputs = tmp_path / "outputs"
    with pytest.raises(UserError, match="no run in"):
        find_checkpoint(outputs=outputs)
    touch(outputs / "2026-01-01" / "10-00-00" / "checkpoints" / "best.ckpt", 100)
    best = touch(outputs / "sweeps" / "a" / "0_x=1" / "checkpoints" / "best.ckpt", 200)
    touch(best.with_name("last.ckpt"), 300)
    touch(outputs / "2026-01-02" / "train.log", 400)
    assert find_checkpoint(outputs=outputs) == best
    only_last = touch(outputs / "2026-01-03" / "checkpoints" / "last.ckpt", 500)
    assert find_checkpoint(outputs=outputs) == only_last


def test_find_by_name(tmp_path):
    best = touch(tmp_path / "sweep" / "0_x=1" / "checkpoints" / "best.ckpt", 200)
    last = touch(best.with_name("last.ckpt"), 300)
    for name in (best, best.parent, best.parent.parent):
        assert find_checkpoint(name) == best
    assert find_checkpoint(last) == last
    with pytest.raises(UserError, match="sweep is no checkpoint"):
        find_checkpoint(tmp_path / "sweep")
    with pytest.raises(UserError, match=r"no such checkpoint or run: .*none"):
        find_checkpoint(tmp_path / "none")


@pytest.mark.parametrize("name", ["/home/me/verse.txt", r"C:\me\verse.txt", "verse.txt/"])
def test_public_name(name):
    assert public_name(name) == "verse.txt"


def refused(path, message=""):
    """The one line in which a file is refused."""
    with pytest.raises(UserError, match=message) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged(saved, tmp_path):
    """Also by one bit among the weights, which torch.load does not notice."""
    content, path = saved[0].read_bytes(), tmp_path / "bad.ckpt"
    at = content.index(saved[1].net.lm_head.weight.detach().numpy().tobytes())
    flipped = content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :]
    for damaged in (b"", content[: len(content) // 2], content[:-1], flipped, pickle.dumps({"state_dict": {}})):
        path.write_bytes(damaged)
        refused(path, "is damaged, or not a file that chargpt wrote")


def test_not_there_or_not_readable(tmp_path):
    refused(tmp_path / "none.ckpt", "cannot read .*none.ckpt: No such file")
    refused(tmp_path, "cannot read .*: Is a directory")


def test_a_lack_of_memory_is_not_damage(saved, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(MemoryError):
        load(saved[0])


def changed(*keys, **values):
    """A change of some entries."""

    def change(contents):
        functools.reduce(dict.__getitem__, keys, contents).update(values)

    return change


def weight(value, name="net.lm_head.bias"):
    return lambda contents: contents["state_dict"].update({name: value})


SETTINGS = "hyper_parameters"
CHANGES = [
    (changed(global_step="two"), "step"),
    (changed(SETTINGS, characters="ba"), "vocabulary"),
    (changed(SETTINGS, characters="abcdefg"), "weights are not"),
    (changed(SETTINGS, corpus={"name": ["a"]}), "text"),
    (changed(SETTINGS, scoring={"batch_size": 0}), "scoring.batch_size"),
    (changed(SETTINGS, "model", _target_="os.system"), "unknown key model._target_"),
    (changed(SETTINGS, "model", n_head="1"), "model.n_head"),
    (changed(SETTINGS, "model", n_embd=10**7), "weights are not"),
    (weight(torch.zeros(6)), "weights are not"),
    (weight(torch.zeros(5), "net.another"), "weights are not"),
    (weight("text"), "weights are not"),
    (weight(torch.empty(5, device="meta")), "weights are not"),
    (weight(torch.zeros(5).double()), "weights are not"),
    (weight(torch.full((5,), torch.nan)), "weights are not"),
    (lambda made: made.update(state_dict={k: w.cfloat() for k, w in made["state_dict"].items()}), "weights are not"),
    (lambda contents: contents.pop("state_dict"), "not a file that chargpt wrote"),  # such as nanoGPT's
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=range(len(CHANGES)))
def test_foreign(change, message, contents, tmp_path):
    change(contents)
    torch.save(contents, tmp_path / "foreign.ckpt")
    refused(tmp_path / "foreign.ckpt", message)


class Calls:
    """Unpickled as the result of a call."""

    def __reduce__(self):
        return os.mkdir, ("was_here",)


def test_no_code_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"net.a": [({"b": Calls()},)]}, "hyper_parameters": {}}, "evil.ckpt")
    refused(tmp_path / "evil.ckpt", "damaged, or not a file that chargpt wrote")
    assert not (tmp_path / "was_here").exists()
    torch.load("evil.ckpt", weights_only=False)
    assert (tmp_path / "was_here").exists()

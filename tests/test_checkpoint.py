"""Checkpoints: read back as saved, found, and refused in one line if damaged or foreign."""

import functools
import os
import pickle
from dataclasses import asdict

import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from chargpt.checkpoint import EvalSettings, find_checkpoint, load, load_checkpoint, public_name, read_checkpoint
from chargpt.errors import UserError
from chargpt.model import GPT, BigramConfig, GPTConfig
from chargpt.module import CharLM
from chargpt.optim import AdamWConfig

CHARACTERS = "\n abc"
CONFIG = GPTConfig(block_size=4, n_layer=1, n_head=1, n_embd=4)
TEXT = {"name": "/home/me/verse.txt", "sha256": "0" * 64}
NAME = "net.lm_head.bias"


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
    for name, weight in checkpoint.model.state_dict().items():
        assert torch.equal(weight, module.net.state_dict()[name])


def test_load_checkpoint_is_ready_to_use(saved):
    """It can also be trained on, and leaves the caller's random numbers alone."""
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    model, tokenizer = load_checkpoint(saved[0])
    assert torch.equal(torch.rand(3), expected)
    assert isinstance(model, GPT)
    assert not model.training
    assert all(weight.requires_grad for weight in model.parameters())
    assert model(torch.tensor([tokenizer.encode("abc")])).shape == (1, 3, 5)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_keep_their_type(kind, contents, tmp_path):
    contents["state_dict"] = {name: weight.to(kind) for name, weight in contents["state_dict"].items()}
    torch.save(contents, tmp_path / "small.ckpt")
    model, _ = load_checkpoint(tmp_path / "small.ckpt")
    assert {weight.dtype for weight in model.parameters()} == {kind}
    assert torch.equal(model.lm_head.bias, contents["state_dict"][NAME])


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


def test_a_bigram(tmp_path):
    module = CharLM(BigramConfig(), AdamWConfig(), CHARACTERS)
    torch.save({"hyper_parameters": dict(module.hparams), "state_dict": module.state_dict()}, tmp_path / "bigram.ckpt")
    model, _ = load_checkpoint(tmp_path / "bigram.ckpt")
    assert model.config == BigramConfig()
    assert torch.equal(model.token_embedding_table.weight, module.net.token_embedding_table.weight)


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
    touch(tmp_path / "disk" / "10-00-00" / "checkpoints" / "best.ckpt", 600)
    (outputs / "2026-11-30").symlink_to(tmp_path / "disk")
    linked = outputs / "2026-11-30" / "10-00-00" / "checkpoints" / "best.ckpt"
    assert find_checkpoint(outputs=outputs) == linked


def test_find_by_name(tmp_path):
    best = touch(tmp_path / "sweep" / "0_x=1" / "checkpoints" / "best.ckpt", 200)
    last = touch(best.with_name("last.ckpt"), 300)
    for name in (best, best.parent, best.parent.parent):
        assert find_checkpoint(name) == best
    assert find_checkpoint(last) == last
    with pytest.raises(UserError, match=r"several runs.*0_x=1"):
        find_checkpoint(tmp_path / "sweep")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no checkpoint"):
        find_checkpoint(tmp_path / "empty")
    with pytest.raises(UserError, match="no such checkpoint"):
        find_checkpoint(tmp_path / "none")


NAMES = {
    "/home/me/verse.txt": "verse.txt", r"C:\me\verse.txt": "verse.txt", "a/b/": "b", "/": "an unnamed text",
    "x" * 999: 200 * "x",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_public_name(name):
    assert public_name(name) == NAMES[name]


def refused(path, message=""):
    """The one line in which a file is refused."""
    with pytest.raises(UserError, match=message) as error:
        read_checkpoint(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


# From a file's bytes to the bytes of a damaged or foreign one
FILES = {
    "empty": lambda content: b"",
    "one byte": lambda content: content[:1],
    "half": lambda content: content[: len(content) // 2],
    "cut at the end": lambda content: content[:-1],
    "text": lambda content: b"green bottles",
    "plain pickle": lambda content: pickle.dumps({"state_dict": {}}),
}


@pytest.mark.parametrize("name", FILES)
def test_damaged(name, saved, tmp_path):
    (tmp_path / "bad.ckpt").write_bytes(FILES[name](saved[0].read_bytes()))
    refused(tmp_path / "bad.ckpt", "is damaged, or not a file that chargpt wrote")


def test_flipped_bits(saved, tmp_path):
    """One among the weights, which torch.load does not notice; and elsewhere, which may be padding."""
    content, path = saved[0].read_bytes(), tmp_path / "bad.ckpt"
    state = torch.load(saved[0], weights_only=True)["state_dict"]
    at = content.index(state["net.blocks.0.ffwd.net.0.weight"].numpy().tobytes())
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    torch.load(path, weights_only=True)
    refused(path, "damaged")
    weights, noticed = read_checkpoint(saved[0]).model.state_dict(), 0
    for at in range(0, len(content), len(content) // 300):
        path.write_bytes(content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :])
        try:
            found = read_checkpoint(path).model.state_dict()
        except UserError:
            noticed += 1
        else:
            assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert noticed > 50


def test_not_there_or_not_readable(tmp_path):
    refused(tmp_path / "none.ckpt", "cannot read .*none.ckpt: No such file")
    refused(tmp_path, "cannot read .*: Is a directory")


def test_a_lack_of_memory_is_not_damage(saved, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(MemoryError):
        load(saved[0])


def changed(group, **values):
    """A change of some entries; None removes one."""

    def change(contents):
        group_of = functools.reduce(dict.__getitem__, group.split("."), contents) if group else contents
        group_of |= values
        for key in [key for key, value in values.items() if value is None]:
            del group_of[key]
        return contents

    return change


def weight(name, value):
    return lambda contents: contents | {"state_dict": contents["state_dict"] | {name: value}}


SETTINGS, MODEL = "hyper_parameters", "hyper_parameters.model"
CHANGES = [
    (lambda contents: [1, 2], "not a file that chargpt wrote"),
    (lambda contents: torch.zeros(2), "not a file that chargpt wrote"),
    (lambda contents: {"model": torch.zeros(3), "iter_num": 5}, "not a file that chargpt wrote"),  # nanoGPT's
    (changed("", state_dict=[1]), "not a file that chargpt wrote"),
    (changed("", state_dict={}), "weights do not fit"),
    (changed("", hyper_parameters=5), "not a file that chargpt wrote"),
    (changed("", global_step="two"), "step"),
    (changed(SETTINGS, characters=None), "vocabulary"),
    (changed(SETTINGS, characters=["a", "b"]), "vocabulary"),
    (changed(SETTINGS, characters="abcdefg"), "weights do not fit"),
    (changed(SETTINGS, corpus={"name": ["a"]}), "text"),
    (changed(SETTINGS, scoring={"split": [0.5, 0.6]}), "scoring.split"),
    (changed(SETTINGS, scoring={"batch_size": 0}), "scoring.batch_size"),
    (changed(SETTINGS, scoring=[1]), "scoring"),
    (changed(MODEL, name="os.system"), "os.system"),
    (changed(MODEL, _target_="os.system"), "unknown key model._target_"),
    (changed(MODEL, n_head="1"), "model.n_head"),
    (changed(MODEL, n_embd=10**7), "weights do not fit"),
    (changed(MODEL, block_size=5), "weights do not fit"),
    (weight(NAME, torch.zeros(6)), "weights do not fit"),
    (weight("net.another", torch.zeros(5)), "weights do not fit"),
    (weight(NAME, "text"), "weights do not fit"),
    (weight(NAME, torch.zeros(5, dtype=torch.int32)), "weights do not fit"),
    (weight(NAME, torch.empty(5, device="meta")), "weights do not fit"),
    (weight(NAME, torch.zeros(5).double()), "not finite numbers of one type"),
    (weight(NAME, torch.full((5,), torch.nan)), "not finite numbers of one type"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=range(len(CHANGES)))
def test_foreign(change, message, contents, tmp_path):
    torch.save(change(contents), tmp_path / "foreign.ckpt")
    refused(tmp_path / "foreign.ckpt", message)


class Calls:
    """Unpickled as the result of a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Builds:
    """Runs code when its state is set."""

    def __setstate__(self, state):
        os.mkdir("was_here")

    def __getstate__(self):
        return {"a": 1}


ATTACKS = {
    "system": Calls(os.system, "mkdir was_here"),
    "eval": Calls(eval, "__import__('os').mkdir('was_here')"),
    "build": Builds(),
    "inside": {"state_dict": {"net.a": [({"b": Calls(os.mkdir, "was_here")},)]}, "hyper_parameters": {}},
}


@pytest.mark.parametrize("name", ATTACKS)
def test_no_code_is_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(ATTACKS[name], "evil.ckpt")
    refused(tmp_path / "evil.ckpt", "damaged, or not a file that chargpt wrote")
    assert not (tmp_path / "was_here").exists()
    torch.load("evil.ckpt", weights_only=False)
    assert (tmp_path / "was_here").exists()

import os

import pytest
import torch

from chargpt.checkpoint import find_checkpoint, load_checkpoint
from chargpt.errors import UserError
from chargpt.model import GPT


def test_load(tiny_run, text_file):
    model, tokenizer = load_checkpoint(tiny_run / "checkpoints" / "best.ckpt")
    assert isinstance(model, GPT)
    assert not model.training
    assert tokenizer.characters == "".join(sorted(set(text_file.read_text())))
    assert model(torch.tensor([tokenizer.encode("bottles")])).shape == (1, 7, tokenizer.vocab_size)


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_a_checkpoint_is_plain_data_and_complete(tiny_run, name, text_file):
    checkpoint = torch.load(tiny_run / "checkpoints" / name, weights_only=True)
    settings = checkpoint["hyper_parameters"]
    assert settings["corpus"]["name"] == str(text_file)
    assert settings["model"] | {"dropout": 0.2} == {
        "name": "gpt", "n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 16, "dropout": 0.2,
    }  # fmt: skip
    assert type(settings["model"]) is dict
    assert ("optimizer_states" in checkpoint) == (name == "last.ckpt")
    assert not any("_orig_mod" in key for key in checkpoint["state_dict"])


def test_weights_are_those_that_were_saved(tiny_run):
    path = tiny_run / "checkpoints" / "last.ckpt"
    model, _ = load_checkpoint(path)
    saved = torch.load(path, weights_only=True)["state_dict"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, saved[f"net.{name}"])


def touch(path, when):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (when, when))
    return path


def test_newest_run_and_its_best(tmp_path):
    with pytest.raises(UserError, match="no run to sample from"):
        find_checkpoint(outputs=tmp_path)
    touch(tmp_path / "2026-01-01" / "10-00-00" / "checkpoints" / "best.ckpt", 100)
    best = touch(tmp_path / "sweeps" / "a" / "0_x=1" / "checkpoints" / "best.ckpt", 200)
    touch(best.with_name("last.ckpt"), 300)
    touch(tmp_path / "2026-01-02" / "train.log", 400)
    assert find_checkpoint(outputs=tmp_path) == best
    assert find_checkpoint(best.parent.parent) == best
    assert find_checkpoint(best.with_name("last.ckpt")) == best.with_name("last.ckpt")
    only_last = touch(tmp_path / "2026-01-03" / "checkpoints" / "last.ckpt", 500)
    assert find_checkpoint(outputs=tmp_path) == only_last


def test_missing(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint or run"):
        load_checkpoint(tmp_path / "none")
    with pytest.raises(UserError, match="holds no checkpoint"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_truncated(tiny_run, tmp_path, keep):
    content = (tiny_run / "checkpoints" / "best.ckpt").read_bytes()
    path = tmp_path / "cut.ckpt"
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(UserError, match=r"cut\.ckpt is damaged"):
        load_checkpoint(path)


class Stranger:
    def __reduce__(self):
        return os.mkdir, ("was_here",)


@pytest.mark.parametrize(
    "content",
    [
        {"model": Stranger()},
        {"model": torch.zeros(3), "iter_num": 5},
        [1, 2],
        torch.zeros(2),
        {"hyper_parameters": {"characters": "ab", "model": {"name": "gpt"}}, "state_dict": {}},
        {"hyper_parameters": {"characters": "ba", "model": {"name": "bigram", "block_size": 4}}, "state_dict": {}},
        {"hyper_parameters": {"characters": "ab", "model": {"name": "bigram", "block_size": 4}}, "state_dict": {}},
        {"hyper_parameters": {"characters": "ab", "model": "bigram"}, "state_dict": {}},
        {"hyper_parameters": {"characters": 5, "model": {}}, "state_dict": {}},
    ],
)
def test_foreign(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "foreign.ckpt")
    with pytest.raises(UserError):
        load_checkpoint("foreign.ckpt")
    assert not (tmp_path / "was_here").exists()

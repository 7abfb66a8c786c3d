import os
import re
import time
import zipfile
from dataclasses import asdict

import pytest
import torch

from chargpt.checkpoint import find_checkpoint, load_checkpoint, read_checkpoint
from chargpt.errors import UserError
from chargpt.model import GPT, Bigram, BigramConfig, GPTConfig


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
    assert settings["model"] == asdict(GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=16))
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
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="is the folder of a sweep: name one of its runs"):
        find_checkpoint(tmp_path / "sweep")
    with pytest.raises(UserError, match="no run in"):
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


def test_a_changed_byte(tiny_run, tmp_path):
    """Anywhere among the weights, where PyTorch itself would not notice."""
    source = tiny_run / "checkpoints" / "best.ckpt"
    content = bytearray(source.read_bytes())
    with zipfile.ZipFile(source) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    content[largest.header_offset + largest.file_size] ^= 1
    path = tmp_path / "changed.ckpt"
    path.write_bytes(content)
    torch.load(path, weights_only=True)
    with pytest.raises(UserError, match=r"changed\.ckpt is damaged"):
        load_checkpoint(path)


def test_an_archive_that_grows_when_it_is_read(tiny_run, tmp_path):
    path = tmp_path / "packed.ckpt"
    with (
        zipfile.ZipFile(tiny_run / "checkpoints" / "last.ckpt") as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
        target.writestr("archive/zeros", bytes(10_000_000))
    with pytest.raises(UserError, match=r"packed\.ckpt is damaged, or not a checkpoint") as error:
        load_checkpoint(path)
    assert "larger than its file" in str(error.value.__cause__)


class Stranger:
    def __reduce__(self):
        return os.mkdir, ("was_here",)


def saved(model, weights, characters="ab"):
    """As much of a checkpoint as is needed."""
    return {
        "hyper_parameters": {"characters": characters, "model": model},
        "state_dict": {f"net.{name}": value for name, value in weights.items()},
    }


SMALL = GPT(GPTConfig(block_size=4, n_layer=1, n_head=1, n_embd=4), 2).state_dict()
NAME = "token_embedding_table.weight"
TABLE = {NAME: torch.eye(2)}
DOUBLED: list = []  # a few bytes in a file, and any number in a message
for _ in range(50):
    DOUBLED = [DOUBLED, DOUBLED]
SIZES = {"name": "gpt", "block_size": 4, "n_layer": 1, "n_head": 1, "n_embd": 4}


def test_as_much_as_is_needed(tmp_path):
    """What the refused ones below are changed from; options that a file does not have yet have their defaults."""
    torch.save(saved(SIZES, SMALL), tmp_path / "small.ckpt")
    model, tokenizer = load_checkpoint(tmp_path / "small.ckpt")
    assert model.config == GPTConfig(block_size=4, n_layer=1, n_head=1, n_embd=4)
    assert tokenizer.characters == "ab"
    torch.save(saved({"name": "bigram"}, {"token_embedding_table.weight": torch.eye(2)}), tmp_path / "bigram.ckpt")
    model, _ = load_checkpoint(tmp_path / "bigram.ckpt")
    assert isinstance(model, Bigram)
    assert model.config == BigramConfig()
    assert torch.equal(model.token_embedding_table.weight, torch.eye(2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": Stranger()}, "is damaged, or not a checkpoint"),
        ({"model": torch.zeros(3), "iter_num": 5}, "settings or weights are missing"),
        ([1, 2], "settings or weights are missing"),
        (torch.zeros(2), "settings or weights are missing"),
        (saved({"name": "gpt"}, {}), "weights do not fit"),
        (saved({"name": "bigram", "block_size": 4}, {}, "ba"), "vocabulary"),
        (saved({"name": "bigram", "block_size": 4}, {}), "weights do not fit"),
        (saved("bigram", {}), "model must be a mapping"),
        (saved({}, {}, 5), "vocabulary"),
        (saved(SIZES | {"name": "os.system"}, SMALL), "got 'os.system'"),
        (saved(SIZES | {"_target_": "os.system"}, SMALL), "unknown key model._target_"),
        (saved(SIZES | {"n_head": "1"}, SMALL), "model.n_head must be a whole number"),
        (saved(SIZES | {"n_head": 3}, SMALL), "n_embd must be divisible"),
        (saved(SIZES, SMALL, "abc"), "weights do not fit"),
        (saved(SIZES | {"n_layer": 2}, SMALL), "weights do not fit"),
        (saved(SIZES | {"n_layer": 1000}, SMALL), "weights do not fit"),
        (saved(SIZES | {"n_embd": 10**8}, SMALL), "weights do not fit"),
        (saved(SIZES | {"block_size": 10**8}, SMALL), "weights do not fit"),
        (saved(SIZES | {"n_layer": 10**30}, SMALL), "model.n_layer must be a number of at most 64 bits"),
        (saved({"name": "bigram", "block_size": 10**15}, TABLE), "model.block_size must be at least 1 and at most"),
        (saved({"name": "bigram"}, TABLE, "a\ud800"), "a vocabulary has no surrogates"),
        (saved({"name": "bigram"}, TABLE, ["a", "b"]), "a vocabulary is"),
        (saved({"name": "bigram"}, {NAME: torch.eye(2) / 0}), f"the weights {NAME} are not finite numbers"),
        (saved({"name": "bigram"}, {NAME: torch.tensor([[0, 1], [0, torch.nan]])}), "are not finite numbers"),
        (saved({"name": "bigram"}, {NAME: torch.eye(2).int()}), "not numbers of one kind: torch.int32"),
        (
            saved({"name": "bigram"}, {NAME: torch.zeros(1).expand(2, 2)}),
            "is damaged, or not a checkpoint",
        ),
        (saved({"name": "bigram"}, {NAME: torch.tensor([[0.0, 1], [2, 3]]).t()}), "are not laid out as a model's"),
        (saved({"name": "bigram"}, {NAME: torch.empty(2, 2, device="meta")}), "is damaged, or not a checkpoint"),
        (saved({"name": "bigram"}, {NAME: torch.eye(2).to_sparse()}), "is damaged, or not a checkpoint"),
        (saved({"name": "bigram"}, {NAME: torch.eye(2).to(torch.complex64)}), "is damaged, or not a checkpoint"),
        (saved(SIZES, SMALL | {"lm_head.bias": torch.zeros(2).double()}), "one kind: torch.float32, torch.float64"),
        (saved({"name": DOUBLED}, TABLE), "is damaged, or not a checkpoint"),
        (saved({"name": "bigram", "a" * 10**6: 1}, TABLE), f"unknown key model.{'a' * 100} (there are"),
        (saved(SIZES, {k: v for k, v in SMALL.items() if k != "lm_head.bias"}), "do not fit its settings"),
        (saved(SIZES, SMALL | {"blocks.0.ln1.weight": torch.zeros(5)}), "do not fit its settings"),
        (saved(SIZES, SMALL | {"another": torch.zeros(5)}), "do not fit its settings"),
        (saved(SIZES, SMALL | {"lm_head.bias": "text"}), "settings or weights are missing"),
    ],
)
def test_foreign(content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "foreign.ckpt")
    with pytest.raises(UserError, match=re.escape(message)):
        load_checkpoint("foreign.ckpt")
    assert not (tmp_path / "was_here").exists()


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_other_kinds_of_numbers(kind, tmp_path):
    torch.save(saved(SIZES, {name: weight.to(kind) for name, weight in SMALL.items()}), tmp_path / "small.ckpt")
    model, _ = load_checkpoint(tmp_path / "small.ckpt")
    assert {weight.dtype for weight in model.parameters()} == {kind}
    assert torch.equal(model.ln_f.weight, SMALL["ln_f.weight"].to(kind))


def test_the_lectures_keys(tmp_path):
    weights = dict(SMALL)
    qkv = weights.pop("blocks.0.sa.qkv.weight")
    for part, weight in zip(("query", "key", "value"), qkv.chunk(3), strict=True):
        weights[f"blocks.0.sa.heads.0.{part}.weight"] = weight.clone()
    torch.save(saved(SIZES, weights), tmp_path / "lecture.ckpt")
    model, _ = load_checkpoint(tmp_path / "lecture.ckpt")
    assert torch.equal(model.blocks[0].sa.qkv.weight, qkv)


def test_layers_that_are_only_claimed_are_not_made(tmp_path, monkeypatch):
    monkeypatch.setattr("chargpt.model.build_skeleton", None)
    torch.save(saved(SIZES | {"n_layer": 1000}, SMALL), tmp_path / "claims.ckpt")
    with pytest.raises(UserError, match="weights do not fit"):
        load_checkpoint(tmp_path / "claims.ckpt")


def test_what_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "small.ckpt")

    torch.save(saved(SIZES, SMALL), tmp_path / "small.ckpt")
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(UserError, match=r"^cannot read .*small\.ckpt: Permission denied$"):
        load_checkpoint(tmp_path / "small.ckpt")
    monkeypatch.setattr("pathlib.Path.is_file", refuse)
    with pytest.raises(UserError, match=r"^cannot read small\.ckpt: Permission denied$"):
        find_checkpoint(tmp_path / "small.ckpt")


def test_neither_a_file_nor_a_folder():
    with pytest.raises(UserError, match=f"{os.devnull} is neither a checkpoint nor the folder of a run"):
        find_checkpoint(os.devnull)


@pytest.mark.parametrize("name", [["a"], 1, None])
def test_the_name_of_a_text_is_a_text(name, tiny_run, tmp_path):
    """A list could be deeper than Python can write down."""
    saved = torch.load(tiny_run / "checkpoints" / "best.ckpt", weights_only=True)
    saved["hyper_parameters"]["corpus"]["name"] = name
    torch.save(saved, tmp_path / "odd.ckpt")
    with pytest.raises(UserError, match=r"is not a checkpoint that train\.py wrote"):
        load_checkpoint(tmp_path / "odd.ckpt")


@pytest.mark.parametrize("key", ["model", "scoring", "optimizer"])
def test_settings_that_take_long_to_be_shown(key, tiny_run, tmp_path):
    """PyTorch would write out a tensor of many dimensions, number by number."""
    content = torch.load(tiny_run / "checkpoints" / "best.ckpt", weights_only=True)
    tensor = torch.zeros((2,) * 20, dtype=torch.bool)
    content["hyper_parameters"][key] = {"x": tensor} if key == "optimizer" else tensor
    torch.save(content, tmp_path / "odd.ckpt")
    started = time.perf_counter()
    if key == "optimizer":
        assert read_checkpoint(tmp_path / "odd.ckpt").optimizer == {"x": "a Tensor"}
    else:
        with pytest.raises(UserError):
            read_checkpoint(tmp_path / "odd.ckpt")
    assert time.perf_counter() - started < 5


def test_no_memory_is_not_damage(tiny_run, monkeypatch):
    def refuse(*_):
        raise MemoryError

    monkeypatch.setattr("chargpt.checkpoint.read_archive", refuse)
    with pytest.raises(MemoryError):
        load_checkpoint(tiny_run)


def test_randomness_is_left_alone(tiny_run):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_checkpoint(tiny_run)
    assert torch.equal(torch.rand(3), expected)

"""Scores against the plain formula, one character at a time; and `python -m chargpt.evaluate` as a person runs it."""

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from helpers import curves, start, state
from torch.nn import functional as F

from chargpt import evaluate
from chargpt.checkpoint import EvalSettings
from chargpt.errors import NonFiniteError, UserError
from chargpt.evaluate import score
from chargpt.model import BigramConfig, GPTConfig, build_model

SMALL = GPTConfig(block_size=8, n_layer=2, n_head=2, n_embd=16, dropout=0.0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(SMALL, 11).eval()


def text(length):
    return np.random.default_rng(0).integers(0, 11, length).astype(np.uint8)


@torch.no_grad()
def one_by_one(model, ids, first_of):
    """The mean loss and accuracy if character n is predicted from those from first_of(n) on."""
    losses, hits = [], 0
    for n in range(1, len(ids)):
        logits = model(torch.tensor(ids[first_of(n) : n].astype(np.int64))[None])[0, -1]
        losses.append(F.cross_entropy(logits, torch.tensor(int(ids[n]))).item())
        hits += int(logits.argmax() == ids[n])
    return pytest.approx(np.mean(losses), abs=1e-6), pytest.approx(hits / len(losses))


@pytest.mark.parametrize("length", [2, 8, 9, 10, 17, 50])
@pytest.mark.parametrize("stride", [1, 3, 5, 8])
def test_against_one_character_at_a_time(length, stride, model):
    """With stride 1 in blocks, as in validation."""
    ids, step = text(length), 8 - stride + 1

    def first_of(n):
        return max(0, math.ceil((n - 8) / step)) * step

    assert all(n - first_of(n) >= min(n, stride) for n in range(1, length))
    for batch_size in (1, 3):
        assert score(model, ids, EvalSettings(batch_size=batch_size), stride) == one_by_one(model, ids, first_of)


def test_a_long_sum_is_exact():
    """A float32 sum of a million equal losses would be off by more."""
    model = build_model(BigramConfig(block_size=256), 3).eval()
    with torch.no_grad():
        model.token_embedding_table.weight.fill_(0.1)
    assert score(model, np.zeros(1_000_001, np.uint8), EvalSettings()) == (pytest.approx(math.log(3), rel=1e-7), 1)


def test_texts_and_models_that_cannot_be_scored(model):
    with pytest.raises(UserError, match="less than two characters"):
        score(model, text(1), EvalSettings())
    broken = build_model(SMALL, 11).eval()
    with torch.no_grad():
        broken.lm_head.bias[3] = float("nan")
    with pytest.raises(NonFiniteError):
        score(broken, text(20), EvalSettings())


@pytest.fixture
def run(capsys):
    """In this process, for speed: status, output, errors."""
    return lambda *arguments: (evaluate.main(["--device", "cpu", *map(str, arguments)]), *capsys.readouterr())


def best_loss(folder):
    return float(state(folder)["state_dict"]["best_val_loss.min_value"])


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_the_score_is_the_validation_loss(precision, tiny, tmp_path, run):
    """Of a run whose blocks do not fill the last batch."""
    start(tmp_path, *tiny, f"trainer.precision={precision}", "data.split=[0.7,0.3]", "data.batch_size=3")
    status, out, err = run("--ckpt", tmp_path, "--json")
    assert (status, err) == (0, "")
    [found] = json.loads(out)
    assert found["loss"] == pytest.approx(best_loss(tmp_path), abs=1e-6)
    assert found["text"].startswith("the validation split of ")
    assert found["checkpoint"] == f"{tmp_path}/checkpoints/best.ckpt"


def test_the_numbers_in_a_table(tiny_run, run):
    [found] = json.loads(run("--ckpt", tiny_run, "--json", "--min-context", "8")[1])
    status, out, err = run("--ckpt", tiny_run, "--min-context", "8")
    assert (status, err) == (0, "")
    head, row = (re.split(r"  +", line.strip()) for line in out.splitlines())
    assert head == ["loss", "bits", "bits/byte", "perplexity", "accuracy", "predicted", "context", "text", "checkpoint"]
    loss = found["loss"]
    bits = f"{loss / math.log(2):.4f}"
    assert row[:5] == [f"{loss:.4f}", bits, bits, f"{math.exp(loss):.4f}", f"{found['accuracy']:.2%}"]
    assert row[5:] == [f"{found['characters']} characters", "8", found["text"], found["checkpoint"]]


def test_its_own_text_is_recognized_by_its_hash(tiny_run, text_file, tmp_path, run, monkeypatch):
    copy = shutil.copy(text_file, tmp_path / "other name.txt")
    (own,), (named,) = (json.loads(run("--ckpt", tiny_run, "--json", *more)[1]) for more in ((), ("--text", copy)))
    assert named == own | {"text": f"the validation split of {copy}"}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    status, _, err = run("--ckpt", tiny_run)
    assert status == 2
    assert re.match("error: .* is from .*verse.txt, which is not in your cache: name it by --text", err)


def test_another_text(tiny_run, text_file, tmp_path, run):
    text = text_file.read_text(encoding="utf-8")[:500]
    plain, odd = tmp_path / "plain.txt", tmp_path / "odd.txt"
    plain.write_text(text, encoding="utf-8")
    odd.write_text(text[:100] + "文€" + text[100:], encoding="utf-8")
    status, out, err = run("--ckpt", tiny_run, "--text", odd)
    assert (status, out) == (2, "")
    assert "odd.txt has characters outside the vocabulary: '€' (U+20AC), '文' (U+6587); --unknown skip" in err
    [expected] = json.loads(run("--ckpt", tiny_run, "--text", plain, "--json")[1])
    assert expected["characters"] == 499
    plain.write_text(text, encoding="utf-16")
    _, out, _ = run("--ckpt", tiny_run, "--text", plain, "--json", "--encoding", "utf-16")
    assert json.loads(out) == [expected]
    _, out, _ = run("--ckpt", tiny_run, "--text", odd, "--json", "--unknown", "skip")
    assert json.loads(out) == [expected | {"text": f"{odd} without 2 unknown characters"}]


def test_several_make_a_table(tiny_run, tmp_path, run):
    for name in ("0_a", "1_b"):
        shutil.copytree(tiny_run, tmp_path / name)
    (tmp_path / "2_c" / "checkpoints").mkdir(parents=True)  # one that failed
    status, out, err = run("--ckpt", tmp_path, tiny_run / "checkpoints" / "last.ckpt")
    assert status == 0, err
    _, *rows = out.splitlines()
    places = [tmp_path / "0_a", tmp_path / "1_b", tiny_run]
    names = [f"{place}/checkpoints/{name}.ckpt" for place, name in zip(places, ("best", "best", "last"), strict=True)]
    assert [row.split()[-1] for row in rows] == names
    assert rows[0].split()[:5] == rows[1].split()[:5]
    (tmp_path / "1_b" / "checkpoints" / "best.ckpt").write_bytes(b"")
    status, out, err = run("--ckpt", tmp_path, "--json")
    assert (status, len(json.loads(out))) == (2, 1)
    assert "error: " + str(tmp_path / "1_b" / "checkpoints" / "best.ckpt") + " is damaged" in err
    assert err.endswith("error: 1 of 2 checkpoints could not be scored\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--min-context", "0"), "min_context must be at least 1 and at most block_size=16; got 0"),
        (("--text", "no/such/file"), "no text at "),
        (("--split", "test"), "the run had no test part"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tiny_run, run):
    status, out, err = run("--ckpt", tiny_run, *arguments)
    assert (status, out) == (2, "")
    assert f"error: {message}" in err
    assert err.count("\n") == 1


def test_the_splits_of_separate_texts(tiny, tmp_path, run):
    """All of a separate text is scored, and all of the training text, since no part of it was validated."""
    for name, word in (("train", "zebra"), ("val", "quiver"), ("test", "example")):
        (tmp_path / f"{name}.txt").write_text(f"one of many {word} lines\n" * 50)
    paths = {key: f"{tmp_path}/{name}.txt" for key, name in (("", "train"), ("val_", "val"), ("test_", "test"))}
    start(tmp_path / "run", *tiny, *(f"data.{key}path={path}" for key, path in paths.items()))
    best = {"val": best_loss(tmp_path / "run"), "test": curves(tmp_path / "run")["test/loss"][-1][1]}
    for part, loss in best.items():
        [found] = json.loads(run("--ckpt", tmp_path / "run", "--json", "--split", part)[1])
        assert found["loss"] == pytest.approx(loss, rel=1e-5)
        assert found["text"] == paths[f"{part}_"]
    [whole] = json.loads(run("--ckpt", tmp_path / "run", "--json", "--text", paths[""])[1])
    assert whole["characters"] == (tmp_path / "train.txt").stat().st_size - 1
    status, _, err = run("--ckpt", tmp_path / "run", "--text", paths["test_"], "--split", "val")
    assert status == 2
    assert f"the validation text is from {paths['val_']}, which is not {paths['test_']}" in err


def test_a_model_of_bytes(bytes_run, text_file, run):
    rates = curves(bytes_run)
    assert rates["val/bpb"][-1][1] == pytest.approx(rates["val/loss"][-1][1] / math.log(2))
    [found] = json.loads(run("--ckpt", bytes_run, "--json", "--split", "test")[1])
    assert found["bits_per_byte"] == pytest.approx(rates["test/loss"][-1][1] / math.log(2), rel=1e-5)
    [found] = json.loads(run("--ckpt", bytes_run, "--json", "--text", text_file)[1])
    assert found["bytes"] == text_file.stat().st_size - 1
    assert found["bits_per_byte"] == pytest.approx(found["loss"] / math.log(2))


def test_the_bits_of_a_character_are_shared_among_its_bytes(tiny, tmp_path, run):
    (tmp_path / "umlauts.txt").write_text("ä" * 40 + "bc" * 10, encoding="utf-8")
    start(tmp_path / "run", *tiny, f"data.path={tmp_path}/umlauts.txt", "data.split=[0.5,0.5]")
    [found] = json.loads(run("--ckpt", tmp_path / "run", "--json")[1])
    size = len("ä" * 9 + "bc" * 10) + 9  # of the 29 predicted characters
    assert found["bits_per_byte"] * size == pytest.approx(found["bits_per_character"] * 29)

"""`python -m chargpt.evaluate` as a person runs it."""

import json
import math
import shutil
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, curves, start, state

from chargpt import evaluate


@pytest.fixture
def run(capsys):
    """In this process, for speed: status, output, errors."""

    def run(*arguments):
        status = evaluate.main(["--device", "cpu", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def best_loss(folder):
    return float(state(folder)["state_dict"]["best_val_loss.min_value"])


@pytest.fixture(scope="module", params=["32-true", "bf16-mixed", "64-true"])
def scored(request, tiny, tmp_path_factory):
    """A run whose blocks do not fill the last batch."""
    folder = tmp_path_factory.mktemp("run")
    start(folder, *tiny, f"trainer.precision={request.param}", "data.split=[0.7,0.3]", "data.batch_size=3")
    return folder


def test_the_score_is_the_one_that_training_reported(scored, run):
    status, out, err = run("--ckpt", scored, "--json")
    assert (status, err) == (0, "")
    [found] = json.loads(out)
    assert found["loss"] == pytest.approx(best_loss(scored), abs=1e-6)
    assert found["text"].startswith("the validation split of ")
    assert found["checkpoint"] == f"{scored}/checkpoints/best.ckpt"


def test_the_numbers_in_words(tiny_run, run):
    status, out, err = run("--ckpt", tiny_run)
    assert (status, err) == (0, "")
    checkpoint, characters, loss, perplexity, accuracy = out.splitlines()
    assert checkpoint.startswith(f"{tiny_run}/checkpoints/best.ckpt in 32-true on cpu, on the validation split of ")
    assert characters.endswith(" characters predicted")
    assert loss.startswith(f"loss: {best_loss(tiny_run):.4f} nats per character, ")
    assert perplexity.startswith("perplexity: ")
    assert accuracy.endswith("%")


def test_its_own_text_is_known_by_its_hash(tiny_run, text_file, tmp_path, run):
    copy = shutil.copy(text_file, tmp_path / "other name.txt")
    (own,), (named,) = (json.loads(run("--ckpt", tiny_run, "--json", *more)[1]) for more in ((), ("--text", copy)))
    assert named["loss"] == own["loss"]
    assert named["text"] == f"the validation split of {copy}"


def test_another_text(tiny_run, text_file, tmp_path, run):
    text = text_file.read_text(encoding="utf-8")[:500]
    (tmp_path / "plain.txt").write_text(text, encoding="utf-8")
    (tmp_path / "odd.txt").write_text(text[:100] + "文€" + text[100:], encoding="utf-8")
    status, out, err = run("--ckpt", tiny_run, "--text", tmp_path / "odd.txt")
    assert (status, out) == (2, "")
    assert "odd.txt has characters outside the vocabulary: '€' (U+20AC), '文' (U+6587); --unknown skip" in err
    plain = json.loads(run("--ckpt", tiny_run, "--text", tmp_path / "plain.txt", "--json")[1])
    _, out, err = run("--ckpt", tiny_run, "--text", tmp_path / "odd.txt", "--json", "--unknown", "skip")
    odd = json.loads(out)
    assert f"Unknown characters left out of {tmp_path / 'odd.txt'}: 2\n" in err
    assert plain[0]["characters"] == 499
    assert odd[0] == plain[0] | {"text": str(tmp_path / "odd.txt")}


def test_with_a_stride(tiny_run, run):
    [found] = json.loads(run("--ckpt", tiny_run, "--json", "--stride", "8")[1])
    assert found["stride"] == 8
    assert "loss" not in found
    assert found["sliding_loss"] > 0
    assert (
        f"sliding loss (from 8 characters or more): {found['sliding_loss']:.4f}"
        in run("--ckpt", tiny_run, "--stride", "8")[1]
    )


def test_several_make_a_table(tiny_run, tmp_path, run):
    for name in ("0_a", "1_b"):
        shutil.copytree(tiny_run, tmp_path / name)
    (tmp_path / "2_c" / "checkpoints").mkdir(parents=True)  # one that failed
    status, out, err = run("--ckpt", tmp_path, tiny_run / "checkpoints" / "last.ckpt")
    assert status == 0, err
    head, *rows = out.splitlines()
    assert head.split() == ["loss", "bits", "bits/byte", "perplexity", "accuracy", "predicted", "text", "checkpoint"]
    places = [tmp_path / "0_a", tmp_path / "1_b", tiny_run]
    names = [f"{place}/checkpoints/{name}.ckpt" for place, name in zip(places, ("best", "best", "last"), strict=True)]
    assert [row.split()[-1] for row in rows] == names
    assert rows[0].split()[:5] == rows[1].split()[:5]
    assert len(json.loads(run("--ckpt", tmp_path, "--json")[1])) == 2
    (tmp_path / "1_b" / "checkpoints" / "best.ckpt").write_bytes(b"")
    status, out, err = run("--ckpt", tmp_path, "--json")
    assert (status, len(json.loads(out))) == (2, 1)
    assert "1_b/checkpoints/best.ckpt is damaged" in err
    assert err.endswith("error: 1 of 2 checkpoints could not be scored\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--stride", "0"), "stride must be at least 1 and at most block_size=16 characters; got 0"),
        (("--stride", "17"), "stride must be at least 1 and at most block_size=16 characters; got 17"),
        (("--stride", "x"), "argument --stride: invalid int value: 'x'"),
        (("--text", "no/such/file"), "no text at "),
        (("--device", "gpu"), "cannot use the device gpu"),
        (("--ckpt", "no/such/run"), "no such checkpoint or run: no/such/run"),
        (("--ckpt", "README.md"), "README.md is damaged"),
        (("--ckpt",), "argument --ckpt: expected at least one argument"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tiny_run, run):
    status, out, err = run("--ckpt", tiny_run, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1


def test_a_text_that_is_not_in_the_cache(tiny_run, run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    status, _, err = run("--ckpt", tiny_run)
    assert status == 2
    assert err.endswith("which is not in your cache; say where: --text FILE\n")
    assert "verse.txt" in err


def test_a_checkpoint_from_before_it_was_kept(tiny_run, tmp_path, run):
    """It is taken to have been scored in fp32, on the last tenth."""
    kept = torch.load(tiny_run / "checkpoints" / "best.ckpt", weights_only=True)
    del kept["hyper_parameters"]["scoring"]
    torch.save(kept, tmp_path / "old.ckpt")
    [old] = json.loads(run("--ckpt", tmp_path / "old.ckpt", "--json")[1])
    assert old["loss"] == pytest.approx(best_loss(tiny_run), abs=1e-6)
    kept["hyper_parameters"]["corpus"] = {}
    torch.save(kept, tmp_path / "old.ckpt")
    assert "was validated on a text that it does not name" in run("--ckpt", tmp_path / "old.ckpt")[2]


def test_without_lightning(tiny_run):
    code = (
        "import sys; from chargpt.evaluate import main; main(sys.argv[1:]);"
        "print([name for name in sys.modules if name in ('lightning', 'hydra', 'torchmetrics', 'matplotlib')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--ckpt", str(tiny_run)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_the_splits_of_separate_texts(tiny, tmp_path, run, monkeypatch):
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
    assert f"was validated on {paths['val_']}, which is not {paths['test_']}" in err
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    status, _, err = run("--ckpt", tmp_path / "run", "--split", "test")
    assert status == 2
    assert f"was tested on {paths['test_']}, which is not in your cache" in err


def test_a_run_without_a_test_part(tiny_run, run):
    status, _, err = run("--ckpt", tiny_run, "--split", "test")
    assert status == 2
    assert "the run had no test part: data.split=[0.9,0.05,0.05]" in err


def test_a_model_of_bytes(bytes_run, text_file, run):
    rates = curves(bytes_run)
    assert rates["val/bpb"][-1][1] == pytest.approx(rates["val/loss"][-1][1] / math.log(2))
    assert "val/bpc" not in rates
    [found] = json.loads(run("--ckpt", bytes_run, "--json", "--split", "test")[1])
    assert found["bits_per_byte"] == pytest.approx(rates["test/loss"][-1][1] / math.log(2), rel=1e-5)
    [found] = json.loads(run("--ckpt", bytes_run, "--json", "--text", text_file)[1])
    assert found["bytes"] == text_file.stat().st_size - 1
    assert " bits per byte\n" in run("--ckpt", bytes_run)[1]


def test_the_bits_of_a_character_are_shared_among_its_bytes(tiny, tmp_path, run):
    (tmp_path / "umlauts.txt").write_text("ä" * 40 + "bc" * 10, encoding="utf-8")
    start(tmp_path / "run", *tiny, f"data.path={tmp_path}/umlauts.txt", "data.split=[0.5,0.5]")
    [found] = json.loads(run("--ckpt", tmp_path / "run", "--json")[1])
    size = len("ä" * 9 + "bc" * 10) + 9  # of the 29 predicted characters
    assert found["bits_per_byte"] * size == pytest.approx(found["bits_per_character"] * 29)

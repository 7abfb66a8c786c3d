"""Texts in three parts, texts of their own to validate and to test on, and texts of bytes, through a whole run."""

import json
import math
import re

import pytest
import torch
from helpers import ROOT, TINY, composed, curves, resume, run_fresh, run_script, signal_at, start, state
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from chargpt import evaluate
from chargpt.batches import DataConfig, SequentialBlocks, parts_of
from chargpt.checkpoint import load_checkpoint, read_checkpoint
from chargpt.data import CharDataModule
from chargpt.errors import Stopped, UserError
from chargpt.evaluate import score
from chargpt.generation import Sampling, generate
from chargpt.page.build import build_page as build

HARM = {"PYTHONPATH": str(ROOT / "tests")}
THREE = "data.split=[0.8,0.1,0.1]"


def scored(capsys, *arguments):
    """What `chargpt.evaluate` prints as JSON."""
    assert evaluate.main(["--device", "cpu", "--json", *map(str, arguments)]) == 0
    [found] = json.loads(capsys.readouterr().out)
    return found


def losses_of_tests(folder):
    """Those in the events of a run. A test has a file of its own, which TensorBoard sorts by its name: where a process
    has made ten files within a second, as only tests do, the last comes before the others."""
    found = [event for file in folder.glob("events*") for event in EventFileLoader(str(file)).Load()]
    found.sort(key=lambda event: event.wall_time)
    values = [value for event in found for value in event.summary.value if value.tag == "test/loss"]
    return [value.tensor.float_val[0] for value in values]


@pytest.mark.parametrize(
    ("split", "length", "lengths"),
    [
        ([0.9, 0.1], 1_115_394, [1_003_854, 111_540]),  # the lecture's
        ([0.9, 0.05, 0.05], 100_000_000, [90_000_000, 5_000_000, 5_000_000]),  # text8's
        ([0.5, 0.5], 3, [1, 2]),
        ([0.6, 0.2, 0.2], 10, [6, 2, 2]),
    ],
)
def test_where_a_text_is_cut(split, length, lengths):
    parts = parts_of(range(length), split)
    parts = list(parts.values())
    assert [len(part) for part in parts] == lengths
    assert [part[0] for part in parts] == [0, *(part[-1] + 1 for part in parts[:-1])]


def test_blocks_of_a_long_text_take_no_memory():
    class Long:
        def __len__(self):
            return 10**12

    blocks = SequentialBlocks(Long(), 4, 2, rank=1, world_size=3)
    assert len(blocks) == (125_000_000_000 + 1) // 3


# Three parts


def test_the_third_part_is_scored_once_at_the_end(tiny, tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    start(tmp_path, *tiny, THREE, "+callbacks.harm={_target_: faults.Worsen, step: 4}", "trainer.max_steps=9")
    best = read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")
    assert best.step == 3
    [loss] = losses_of_tests(tmp_path)
    data = CharDataModule(data_config(tiny, THREE))
    data.setup()
    sizes = [len(ids) for ids in (data.train_ids, data.val_ids, data.test_ids)]
    assert "distinct (training {:,}, validation {:,}, test {:,})".format(*sizes) in caplog.text
    assert loss == pytest.approx(score(best.model.eval(), data.test_ids, best.scoring).loss, rel=1e-5)
    bits = f"{loss / math.log(2):.4f} bits per character"
    assert f"Test loss {loss:.4f} ({bits}), with the weights of the best validation loss" in caplog.text
    found = scored(capsys, "--ckpt", tmp_path, "--split", "test")
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["text"].startswith("the test split of ")
    assert found["characters"] == len(data.test_ids) - 1


def data_config(tiny, *overrides):
    return DataConfig(**OmegaConf.to_container(composed(*tiny, *overrides, "run_dir=x").data, resolve=True))


def test_training_does_not_see_the_third_part(tiny, tmp_path):
    """The same run, whatever the third part says."""
    texts = [tmp_path / "a.txt", tmp_path / "b.txt"]
    verse = "the quick brown fox jumps over the lazy dog. " * 45
    for text, word in zip(texts, ("lazy ", "quick"), strict=True):
        text.write_text(verse + word * 45)
    config = [*tiny, THREE]
    for text in texts:
        start(text.with_suffix(""), *config, f"data.path={text}")
    a, b = (curves(text.with_suffix("")) for text in texts)
    assert a["val/loss"] == b["val/loss"]
    assert len({*(loss for text in texts for loss in losses_of_tests(text.with_suffix("")))}) == 2
    for name, weight in state(texts[0].with_suffix(""))["state_dict"].items():
        assert torch.equal(weight, state(texts[1].with_suffix(""))["state_dict"][name]), name


def test_an_interrupted_run_is_tested_at_its_end(tiny, tmp_path):
    with pytest.raises(Stopped):
        start(tmp_path, *tiny, THREE, *signal_at(3))
    assert losses_of_tests(tmp_path) == []
    resume(tmp_path, "+callbacks.stop=null")
    assert len(losses_of_tests(tmp_path)) == 1


def test_the_average_is_tested(tiny, tmp_path, capsys):
    start(tmp_path, *tiny, THREE, "callbacks.averaging.decay=0.5")
    [loss] = losses_of_tests(tmp_path)
    assert scored(capsys, "--ckpt", tmp_path, "--split", "test")["loss"] == pytest.approx(loss, rel=1e-5)


def test_a_run_of_two_parts_has_none_to_test(tiny_run, capsys):
    assert evaluate.main(["--ckpt", str(tiny_run), "--split", "test"]) == 2
    assert "the run had no test part: data.split=[0.9,0.05,0.05]" in capsys.readouterr().err
    assert losses_of_tests(tiny_run) == []


# Texts of their own


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A text to train on, and two of their own, each with characters that the others lack."""
    folder = tmp_path_factory.mktemp("own")
    for name, word in (("train", "zebra"), ("val", "quiver"), ("test", "example 5")):
        (folder / f"{name}.txt").write_text(f"one of many {word} lines\n" * 50)
    return folder


def paths(own):
    return [f"data.path={own}/train.txt", f"data.val_path={own}/val.txt", f"data.test_path={own}/test.txt"]


def test_all_of_the_text_trains_beside_texts_of_their_own(own, tiny, tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    data = CharDataModule(data_config(tiny, *paths(own)))
    data.setup()
    texts = [(own / f"{name}.txt").read_text() for name in ("train", "val", "test")]
    ids = (data.train_ids, data.val_ids, data.test_ids)
    assert [data.tokenizer.decode(each[:]) for each in ids] == texts
    assert data.tokenizer.characters == "".join(sorted(set("".join(texts))))
    start(tmp_path, *tiny, *paths(own))
    assert "(training" not in caplog.text  # nothing is cut
    new = [len(set(text) - set(texts[0])) for text in texts[1:]]
    for part, number in zip(("Validation", "Test"), new, strict=True):
        assert re.search(rf"^{part} text: .* distinct, {number} of which the training text lacks$", caplog.text, re.M)
    rates = curves(tmp_path)
    for part, loss in (("val", rates["val/best_loss"][-1][1]), ("test", losses_of_tests(tmp_path)[0])):
        found = scored(capsys, "--ckpt", tmp_path, "--split", part)
        assert found["loss"] == pytest.approx(loss, rel=1e-5)
        assert found["text"] == f"{own}/{part}.txt"
    whole = scored(capsys, "--ckpt", tmp_path, "--text", own / "train.txt")  # no part of it validated
    assert whole["characters"] == len(texts[0]) - 1
    assert evaluate.main(["--ckpt", str(tmp_path), "--text", str(own / "train.txt"), "--split", "test"]) == 2


def test_the_same_text_for_two_parts_is_told(own, tiny, tmp_path, caplog):
    """Another of its name is none."""
    caplog.set_level("INFO")
    other = tmp_path / "train.txt"
    other.write_text((own / "val.txt").read_text())
    texts = [f"data.path={own}/train.txt", f"data.val_path={other}", f"data.test_path={own}/train.txt"]
    start(tmp_path / "run", *tiny, *texts)
    assert re.search(r"^Validation text: .* distinct, 3 of which the training text lacks$", caplog.text, re.MULTILINE)
    assert re.search(r"^Test text: .* distinct, the same as the training text$", caplog.text, re.MULTILINE)
    start(tmp_path / "other", *tiny, *texts[:2], f"data.test_path={own}/val.txt")
    assert re.search(r"^Test text: .* lacks, the same as the validation text$", caplog.text, re.MULTILINE)


def test_it_resumes_with_them_by_their_hashes(own, tiny, tmp_path):
    start(tmp_path / "once", *tiny, *paths(own), "trainer.max_steps=9")
    start(tmp_path / "twice", *tiny, *paths(own), "trainer.max_steps=6")
    resume(tmp_path / "twice", "trainer.max_steps=9")
    a, b = state(tmp_path / "once"), state(tmp_path / "twice")
    for name, weight in a["state_dict"].items():
        assert torch.equal(weight, b["state_dict"][name]), name
    assert a["hyper_parameters"]["corpus"] == b["hyper_parameters"]["corpus"]
    assert set(a["hyper_parameters"]["corpus"]) == {
        f"{part}{key}" for part in ("", "val_", "test_") for key in ("name", "sha256")
    }
    with pytest.raises(UserError, match=r"val\.txt is not the text that the run began with|train\.txt is not the text"):
        resume(tmp_path / "twice", f"data.val_path={own}/train.txt", "trainer.max_steps=12")


# Bytes


@pytest.fixture(scope="module")
def of_bytes(tiny, tmp_path_factory):
    """A run on bytes that are no UTF-8."""
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "latin.txt").write_bytes("naïve façade, 5 €\r\n".encode("cp1252") * 60 + b"\0\xff")
    start(folder / "run", *tiny, f"data.path={folder}/latin.txt", "data.tokenizer=bytes", THREE)
    return folder / "run"


def test_bytes(of_bytes, capsys):
    model, tokenizer = load_checkpoint(of_bytes)
    assert model.token_embedding_table.num_embeddings == tokenizer.vocab_size == 256
    rates = curves(of_bytes)
    assert rates["val/bpb"][-1][1] == pytest.approx(rates["val/loss"][-1][1] / math.log(2))
    assert "val/bpc" not in rates
    found = scored(capsys, "--ckpt", of_bytes, "--split", "test")
    assert found["bits_per_byte"] == pytest.approx(losses_of_tests(of_bytes)[0] / math.log(2), rel=1e-5)
    assert found["bytes"] > 0
    assert evaluate.main(["--ckpt", str(of_bytes)]) == 0
    out = capsys.readouterr().out
    assert " bytes predicted" in out
    assert " bits per byte\n" in out


def test_bits_per_byte(tiny_run, of_bytes, text_file, tmp_path, capsys):
    """Where a character takes several bytes, its bits are shared among them."""
    (tmp_path / "umlauts.txt").write_text("ä" * 40 + "bc" * 10, encoding="utf-8")
    start(tmp_path / "run", *TINY, f"data.path={tmp_path}/umlauts.txt", "data.split=[0.5,0.5]")
    found = scored(capsys, "--ckpt", tmp_path / "run", "--text", tmp_path / "umlauts.txt")
    validated = ("ä" * 40 + "bc" * 10)[30:]
    size = len(validated[1:].encode())
    assert found["bits_per_byte"] * size == pytest.approx(found["bits_per_character"] * found["characters"])
    assert scored(capsys, "--ckpt", of_bytes, "--text", text_file)["bytes"] == text_file.stat().st_size - 1


def test_bytes_go_on_bitwise(of_bytes, tiny, tmp_path):
    text = of_bytes.parent / "latin.txt"
    options = [*tiny, f"data.path={text}", "data.tokenizer=bytes"]
    start(tmp_path / "once", *options, "trainer.max_steps=9")
    start(tmp_path / "twice", *options, "trainer.max_steps=6")
    resume(tmp_path / "twice", "trainer.max_steps=9")
    for name, weight in state(tmp_path / "once")["state_dict"].items():
        assert torch.equal(weight, state(tmp_path / "twice")["state_dict"][name]), name
    with pytest.raises(UserError, match=r"data\.tokenizer=characters cannot be changed"):
        resume(tmp_path / "twice", "data.tokenizer=characters", "trainer.max_steps=12")


def test_bytes_are_streamed_as_they_are(of_bytes):
    """Also those that are not UTF-8."""
    arguments = ("--ckpt", str(of_bytes), "--prompt", "naïve 道", "--max-new-tokens", "300", "--seed", "1")
    done = run_fresh("sample.py", *arguments, "--device", "cpu", errors="surrogateescape")
    assert done.returncode == 0, done.stderr
    sampling, seed = Sampling(max_new_tokens=300), torch.Generator().manual_seed(1)
    model, tokenizer = load_checkpoint(of_bytes)
    ids = tokenizer.encode("naïve 道")
    tokens = torch.cat(list(generate(model, torch.tensor([ids]), sampling, seed)))
    assert done.stdout.encode(errors="surrogateescape") == bytes([*ids, *tokens.tolist()]) + b"\n"


def test_weights_to_start_from_are_of_the_same_kind(of_bytes, tiny_run, tiny, tmp_path):
    with pytest.raises(UserError, match=r"is a model of bytes: add data\.tokenizer=bytes"):
        start(tmp_path / "a", *tiny, f"init_from={of_bytes}")
    with pytest.raises(UserError, match=r"is a model of characters: add data\.tokenizer=characters"):
        start(tmp_path / "b", *tiny, f"init_from={tiny_run}", "data.tokenizer=bytes")
    start(tmp_path / "c", *tiny, f"init_from={of_bytes}", "data.tokenizer=bytes")


def test_the_page_shows_characters(of_bytes, tmp_path):
    with pytest.raises(UserError, match="is a model of bytes, and the page shows models of characters"):
        build(of_bytes / "checkpoints" / "best.ckpt", "fp16")


# text8


def test_text8(tmp_path):
    """On a small file of the same form: lower-case letters and spaces, and no end of a line."""
    words = "anarchism originated as a term of abuse first used against early working class radicals including the "
    (tmp_path / "text8").write_text(" " + (words * 20).strip())
    small = ["model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.block_size=16", "trainer.max_steps=4"]
    small += ["trainer.val_check_interval=2", "trainer.accelerator=cpu", f"data.path={tmp_path}/text8"]
    done = run_script("train.py", "experiment=text8", *small, f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    assert "Test loss " in done.stderr
    assert "bits per character), with the weights of the best validation loss" in done.stderr
    cfg = composed("experiment=text8")
    assert (list(cfg.data.split), cfg.data.path) == ([0.9, 0.05, 0.05], "text8")


# What goes wrong at the end


@pytest.mark.parametrize(("signum", "status"), [(2, 130), (15, 143)])
def test_a_signal_in_the_test(signum, status, tiny, tmp_path):
    """The training is done; the test can be had later."""
    stop = signal_at(6, when="on_test_batch_start", signum=signum)
    done = run_script("train.py", *tiny, THREE, *stop, f"hydra.run.dir={tmp_path}/run", env=HARM)
    assert done.returncode == status, done.stderr
    command = f"python -m chargpt.evaluate --split test --ckpt {tmp_path}/run"
    assert f"Stopped; the training is done and saved. To score the test text: {command}\n" in done.stderr
    assert "Best validation loss" in done.stderr
    assert "Traceback" not in done.stderr
    again = run_script("train.py", f"resume={tmp_path}/run", "+callbacks.stop=null")
    assert again.returncode == 0, again.stderr
    assert (
        f"is finished, 6 steps; a larger trainer.max_steps resumes it\nTo score the test text: {command}\n"
        in again.stderr
    )


@pytest.mark.parametrize("averaged", [[], ["callbacks.averaging.decay=0.5"]])
def test_without_a_best_checkpoint_the_last_weights_are_tested(averaged, tiny, tmp_path, capsys, caplog):
    """Their average, where there is one; also beside a best checkpoint that is not this best one's."""
    caplog.set_level("INFO")
    start(tmp_path, *tiny, THREE, *averaged)
    resume(tmp_path, "callbacks.best_checkpoint=null", "trainer.max_steps=12")
    _, loss = losses_of_tests(tmp_path)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert scored(capsys, "--ckpt", last, "--split", "test")["loss"] == pytest.approx(loss, rel=1e-6)
    assert "with the weights of the last step" in caplog.text


def test_a_part_of_the_test_text_is_no_test(tiny, tmp_path, caplog):
    with pytest.raises(UserError, match=r"trainer\.limit_test_batches would score a part of the test text only"):
        start(tmp_path, *tiny, THREE, "trainer.limit_test_batches=1")
    caplog.set_level("INFO")
    start(tmp_path / "dev", *tiny, THREE, "trainer.fast_dev_run=true")
    assert "test text" not in caplog.text


def test_null_for_a_text_changes_nothing(own, tiny, tmp_path, caplog):
    start(tmp_path, *tiny, *paths(own))
    caplog.set_level("INFO")
    resume(tmp_path, "data.val_path=null", "trainer.max_steps=9")
    assert "Changed: data" not in caplog.text


def test_messages_name_what_was_said(own, tiny, tiny_run, tmp_path, monkeypatch, capsys):
    for key in ("val", "test"):
        with pytest.raises(UserError, match=rf"no text at data\.{key}_path=nope\.txt"):
            start(tmp_path / key, *tiny, f"data.{key}_path=nope.txt")
    assert evaluate.main(["--ckpt", str(tiny_run), "--text", "nope.txt"]) == 2
    assert "no text at --text nope.txt" in capsys.readouterr().err
    start(tmp_path / "run", *tiny, *paths(own))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    assert evaluate.main(["--ckpt", str(tmp_path / "run"), "--split", "test"]) == 2
    assert (
        f"was tested on {own}/test.txt, which is not in your cache; say where: --text FILE" in capsys.readouterr().err
    )
    scored(capsys, "--ckpt", tmp_path / "run", "--split", "test", "--text", own / "test.txt")
    assert evaluate.main(["--ckpt", str(tmp_path / "run"), "--split", "val", "--text", str(own / "test.txt")]) == 2
    assert f"was validated on {own}/val.txt, which is not {own}/test.txt" in capsys.readouterr().err


def test_characters_of_the_own_text_that_the_vocabulary_lacks(tiny_run, tmp_path, capsys):
    """A stranger's checkpoint may have another vocabulary than its text."""
    kept = torch.load(tiny_run / "checkpoints" / "best.ckpt", weights_only=True)
    characters = kept["hyper_parameters"]["characters"]
    kept["hyper_parameters"]["characters"] = characters[:-1] + "\U0001f600"
    torch.save(kept, tmp_path / "theirs.ckpt")
    assert evaluate.main(["--ckpt", str(tmp_path / "theirs.ckpt")]) == 2
    assert f"characters outside the vocabulary: {characters[-1]!r}" in capsys.readouterr().err
    scored(capsys, "--ckpt", tmp_path / "theirs.ckpt", "--unknown", "skip")


def test_a_sweep_does_not_mix_characters_and_bytes(tiny, tmp_path):
    done = run_script("train.py", "-m", *tiny, "data.tokenizer=characters,bytes", f"hydra.sweep.dir={tmp_path}/s")
    assert done.returncode == 2
    assert done.stderr == (
        "error: a sweep compares losses, and those per byte do not compare with those per character\n"
    )

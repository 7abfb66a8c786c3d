"""Training on from the weights of another run."""

import shutil

import pytest
import torch
from helpers import STEPS, assert_same, composed, run_script, signal_at, start, state

from chargpt import load_checkpoint
from chargpt.errors import UserError
from chargpt.evaluate import main as evaluate
from chargpt.run.build import build
from chargpt.run.config import read_config
from chargpt.run.init_from import begin_from


@pytest.fixture(scope="module")
def other(tiny, text_file, tmp_path_factory):
    """Overrides for a text with characters that the first one lacks, and without some that it has."""
    text = text_file.read_text(encoding="utf-8").replace("green", "GR\u00fcN").replace("bottles", "bo\u2603")
    file = tmp_path_factory.mktemp("other") / "other.txt"
    file.write_text(text, encoding="utf-8")
    options = [each for each in tiny if not each.startswith(("data.path", "model."))]
    return [*options, f"data.path={file}", *STEPS]


def built(*overrides):
    cfg, initial = begin_from(composed(*overrides))
    return build(read_config(cfg), None, initial)


def test_the_same_text(tiny_run, tiny, tmp_path):
    """Nothing but `init_from` is said of the model: its architecture and its weights are those of the checkpoint."""
    options = [each for each in tiny if not each.startswith("model.")]
    run = built(*options, f"init_from={tiny_run}", f"run_dir={tmp_path}")
    net, _ = load_checkpoint(tiny_run)
    assert run.settings.model == net.config
    assert run.settings.data.block_size == net.config.block_size
    assert_same(run.module.net.state_dict(), net.state_dict())
    for name in ("checkpoints/last.ckpt", "checkpoints"):
        assert_same(
            built(*options, f"init_from={tiny_run}/{name}", f"run_dir={tmp_path}").module.net.state_dict().keys(),
            net.state_dict().keys(),
        )


@pytest.mark.parametrize("kind", ["gpt", "bigram"])
def test_a_text_with_new_characters(kind, tiny_run, tiny, other, tmp_path, caplog):
    """What the model says of the characters that it knows stays as it was, and of the new ones it is told."""
    caplog.set_level("INFO")
    first, more = tiny_run, []
    if kind == "bigram":
        first, more = tmp_path / "bigram", ["model=bigram"]
        start(first, *(each for each in tiny if not each.startswith("model.n_")), *more)
    run = built(*other, *more, f"init_from={first}", f"run_dir={tmp_path}/run")
    net, tokenizer = load_checkpoint(first)
    assert "5 characters are new to the model and start untrained: 'GNR\u00fc\u2603'" in caplog.text
    characters = run.module.hparams["characters"]
    assert characters == "".join(sorted(tokenizer.characters + "GNR\u00fc\u2603"))
    assert set(tokenizer.characters) < set(characters)
    places = torch.tensor([characters.index(each) for each in tokenizer.characters])
    ids = torch.tensor([tokenizer.encode("7 green bottles")])
    with torch.no_grad():
        before, after = net(ids), run.module.net.eval()(places[ids])
    torch.testing.assert_close(after[..., places], before)
    assert after.shape[-1] == before.shape[-1] + 5
    # The batches have the ids of this vocabulary.
    text = (tmp_path / "run").parent and run.data.corpus
    ids = [*run.data.train_ids, *run.data.val_ids]
    assert "".join(characters[each] for each in ids) == text.tokenizer.decode(text.ids)


def test_interrupted_and_resumed(tiny_run, other, tmp_path):
    """Bit for bit as if it had not been, also where the weights that it began from are gone; fresh optimizer."""
    first = shutil.copytree(tiny_run, tmp_path / "first")
    start(tmp_path / "whole", *other, f"init_from={first}")
    line = [*other, f"init_from={first}", f"hydra.run.dir={tmp_path}/run"]
    assert run_script("train.py", *line, *signal_at(5)).returncode == 143
    shutil.rmtree(first)
    done = run_script("train.py", f"resume={tmp_path}/run", "+callbacks.stop=null")
    assert done.returncode == 0, done.stderr
    whole, run = state(tmp_path / "whole"), state(tmp_path / "run")
    for key in ("state_dict", "optimizer_states", "random_states", "global_step"):
        assert_same(whole[key], run[key], key)
    assert whole["hyper_parameters"]["characters"] == run["hyper_parameters"]["characters"]
    steps = {float(each["step"]) for each in whole["optimizer_states"][0]["state"].values()}
    assert steps == {12.0}


def test_its_score_is_found_again(tiny_run, other, tmp_path, capsys):
    """In the larger vocabulary."""
    start(tmp_path, *other, f"init_from={tiny_run}")
    assert evaluate(["--ckpt", str(tmp_path), "--device", "cpu"]) == 0
    best = float(state(tmp_path)["state_dict"]["best_val_loss.min_value"])
    assert f"loss: {best:.4f} nats per character" in capsys.readouterr().out


def test_what_is_said_beside_it(tiny_run, other, tmp_path):
    run = [*other, f"init_from={tiny_run}", f"hydra.run.dir={tmp_path}/run"]
    done = run_script("train.py", *run, "model.n_layer=3")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: init_from={tiny_run} has model.n_layer=2, on which its weights depend: leave model.n_layer=3 out\n"
    )
    done = run_script("train.py", *run, "model={n_layer:3}")
    assert done.returncode == 2
    done = run_script("train.py", *run, "model.n_layer=2", "model.dropout=0.5")
    assert done.returncode == 0, done.stderr
    assert f"Weights to start from: {tiny_run}/checkpoints/best.ckpt" in done.stderr
    assert state(tmp_path / "run")["hyper_parameters"]["model"]["dropout"] == 0.5
    done = run_script("train.py", f"resume={tmp_path}/run", f"init_from={tiny_run}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: init_from= begins a run, and resume= resumes one")
    done = run_script("train.py", f"resume={tmp_path}/run", "trainer.max_steps=14")
    assert done.returncode == 0, done.stderr


def test_what_cannot_be_started_from(tiny_run, tiny, tmp_path):
    for name, message in (("none", "no such checkpoint or run: none"), ("README.md", "README.md is damaged, or not")):
        with pytest.raises(UserError, match=message):
            begin_from(composed(*tiny, f"init_from={name}"))
    options = [each for each in tiny if not each.startswith("model.n_")]
    with pytest.raises(UserError, match=r"is a gpt: add model=gpt"):
        begin_from(composed(*options, "model=bigram", f"init_from={tiny_run}"))


def test_characters_and_bytes_do_not_start_from_each_other(bytes_run, tiny_run, tiny, tmp_path):
    with pytest.raises(UserError, match=r"is a model of bytes: add data\.tokenizer=bytes"):
        built(*tiny, f"init_from={bytes_run}", f"run_dir={tmp_path}")
    with pytest.raises(UserError, match=r"is a model of characters: add data\.tokenizer=characters"):
        built(*tiny, f"init_from={tiny_run}", "data.tokenizer=bytes", f"run_dir={tmp_path}")
    assert built(*tiny, f"init_from={bytes_run}", "data.tokenizer=bytes", f"run_dir={tmp_path}")

"""Training on from the weights of another run."""

import shutil

import pytest
import torch
from helpers import QUIET, assert_same, assert_same_end, composed, run_script, signal_at, start, state

from chargpt import load_checkpoint
from chargpt.errors import UserError
from chargpt.evaluate import main as evaluate
from chargpt.run.build import begin_from, build
from chargpt.run.config import read_config


@pytest.fixture(scope="module")
def other(tiny, text_file, tmp_path_factory):
    """Overrides for a text with characters that the first one lacks, and without some that it has."""
    text = text_file.read_text(encoding="utf-8").replace("green", "GR\u00fcN").replace("bottles", "bo\u2603")
    file = tmp_path_factory.mktemp("other") / "other.txt"
    file.write_text(text, encoding="utf-8")
    options = [each for each in tiny if not each.startswith(("data.path", "model."))]
    return [*options, f"data.path={file}", *QUIET]


def built(*overrides):
    cfg, initial = begin_from(composed(*overrides))
    return build(read_config(cfg), None, initial)


@pytest.mark.parametrize("name", ["", "checkpoints/last.ckpt"])
def test_the_same_text(name, tiny_run, tiny, tmp_path):
    """Architecture and weights are those of the checkpoint."""
    options = [each for each in tiny if not each.startswith("model.")]
    run = built(*options, f"init_from={tiny_run / name}", f"run_dir={tmp_path}")
    net, _ = load_checkpoint(tiny_run / name)
    assert run.settings.model == net.config
    assert run.settings.data.block_size == net.config.block_size
    assert_same(run.module.net.state_dict(), net.state_dict())


@pytest.mark.parametrize("kind", ["gpt", "bigram"])
def test_a_text_with_new_characters(kind, tiny_run, tiny, other, tmp_path, caplog):
    """The logits of known characters stay; the log has the new characters."""
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
    ids, text = [*run.data.train_ids, *run.data.val_ids], run.data.corpus  # in this vocabulary
    assert "".join(characters[each] for each in ids) == text.tokenizer.decode(text.ids)


def test_interrupted_and_resumed(tiny_run, other, tmp_path, capsys):
    """Bit for bit, even if the initial weights are gone; dropout may differ; the score can be reproduced."""
    first = shutil.copytree(tiny_run, tmp_path / "first")
    line = [*other, f"init_from={first}", "model.n_layer=2", "model.dropout=0.2"]
    run_script("train.py", *line, f"hydra.run.dir={tmp_path}/whole")
    done = run_script("train.py", *line, *signal_at(5), f"hydra.run.dir={tmp_path}/run", status=143)
    assert f"Weights to start from: {first}\n" in done.stderr
    shutil.rmtree(first)
    run_script("train.py", f"resume={tmp_path}/run", "+callbacks.stop=null")
    assert_same_end(tmp_path / "whole", tmp_path / "run")
    whole, run = state(tmp_path / "whole"), state(tmp_path / "run")
    assert whole["hyper_parameters"] == run["hyper_parameters"]
    assert run["hyper_parameters"]["model"]["dropout"] == 0.2
    assert evaluate(["--ckpt", str(tmp_path / "run"), "--device", "cpu"]) == 0
    best = float(run["state_dict"]["best_val_loss.min_value"])
    assert f"\n{best:.4f} " in capsys.readouterr().out


def test_what_is_refused(bytes_run, tiny_run, tiny, other, tmp_path):
    options = [each for each in tiny if not each.startswith("model.n_")]
    for overrides, message in (
        ([*tiny, "init_from=none"], "no such checkpoint or run: none"),
        ([*options, "model=bigram", f"init_from={tiny_run}"], r"has weights for model=gpt, not for bigram"),
        ([*tiny, f"init_from={bytes_run}"], r"names a model of bytes: add data\.tokenizer=bytes"),
        ([*tiny, f"init_from={tiny_run}", "data.tokenizer=bytes"], r"names a model of characters: add data\.token"),
    ):
        with pytest.raises(UserError, match=message):
            built(*overrides, f"run_dir={tmp_path}")
    assert built(*tiny, f"init_from={bytes_run}", "data.tokenizer=bytes", f"run_dir={tmp_path}")
    line = [*other, f"init_from={tiny_run}", f"hydra.run.dir={tmp_path}/run", "model.n_layer=3"]
    done = run_script("train.py", *line, status=2)
    assert done.stderr == f"error: init_from={tiny_run} has weights for model.n_layer=2, not for 3\n"

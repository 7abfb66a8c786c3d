"""The names of `import chargpt`."""

import subprocess
import sys

import pytest
import torch
from helpers import ROOT

import chargpt


@pytest.mark.processes
def test_imports_load_what_they_need():
    """The package and --help nothing large; sampling, scoring, sharing and pages nothing of training."""
    code = """
import contextlib, sys, chargpt, sample
with contextlib.suppress(SystemExit):
    sample.main(["--help"])
assert not {"torch", "lightning", "numpy", "hydra", "pooch"} & set(sys.modules)
import chargpt.evaluate, chargpt.share, chargpt.page.__main__
assert not {"lightning", "hydra", "torchmetrics", "matplotlib"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_every_name_is_there():
    """With a star, too; no name hides the module that defines it."""
    names = {}
    exec("from chargpt import *", names)
    assert set(chargpt.__all__) <= set(names)
    for name in chargpt.__all__:
        assert getattr(chargpt, name) is names[name]
        assert names[name].__name__ == name
        assert names[name].__module__.startswith("chargpt.")
    with pytest.raises(AttributeError, match="'chargpt' has no attribute 'GTP'"):
        chargpt.GTP  # noqa: B018


def test_from_a_run_to_its_models_in_a_notebook(tiny_run):
    """Lightning's loader and chargpt's load the same weights; both read the file as data."""
    file = tiny_run / "checkpoints" / "best.ckpt"
    module = chargpt.CharLM.load_from_checkpoint(file, weights_only=True, map_location="cpu")
    model, tokenizer = chargpt.load_checkpoint(file)
    assert module.net.config == model.config
    assert module.hparams["characters"] == tokenizer.characters
    assert vars(module.optimizer_config) == module.hparams["optimizer"]
    assert module.net.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(module.net.state_dict()[name], value)
    ids = torch.tensor([tokenizer.encode("bottles")])
    text = list(chargpt.generate(model, ids, chargpt.Sampling(max_new_tokens=3)))
    assert len(tokenizer.decode(torch.cat(text))) == 3

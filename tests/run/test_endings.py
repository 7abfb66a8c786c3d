from pathlib import Path

import pytest
from helpers import ROOT, composed
from hydra.errors import HydraException

from chargpt.run.endings import ending


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.n_layr=3"], "Key 'n_layr' not in 'GPTConfig'; did you mean model.n_layer?"),
        (["callbacks.text_samples.lenght=3"], "did you mean callbacks.text_samples.length?"),
        (["n_layer=3"], "Key 'n_layer' not in 'TrainConfig'; did you mean model.n_layer?"),
        (["sede=3"], "Key 'sede' not in 'TrainConfig'; did you mean seed?"),
        (["data=README.md"], "Could not find 'data/README.md'; did you mean data=file data.path=README.md?"),
        (["optimizer.lr=1e-3,"], "cannot read optimizer.lr=1e-3,: it takes key=value, special characters in quotes: "),
        (["trainer.max_steps"], "cannot read trainer.max_steps: it takes key=value"),
        (["model=gtp"], "Could not find 'model/gtp'; did you mean model=gpt?"),
        (["optimizer=zzz"], "Could not find 'optimizer/zzz' (there are adamw, "),
        (["experiment=cpu", "model=bigram"], "raised while composing config: Key 'n_layer' not in 'BigramConfig'"),
        (["model.n_layer=two"], "Value 'two' of type 'str' could not be converted to Integer"),
    ],
)
def test_what_hydra_refuses(overrides, message, monkeypatch):
    """With its cause, and what may have been meant."""
    monkeypatch.chdir(ROOT)
    with pytest.raises(HydraException) as error:
        composed(*overrides)
    said, status = ending(error.value, Path())
    assert message in said
    assert "\n" not in said
    assert status == 2


def test_a_bug_is_none():
    assert ending(KeyError("a bug"), Path()) is None

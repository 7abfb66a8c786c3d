"""What can be saved can be loaded; a half-written checkpoint replaces nothing."""

import numpy as np
import pytest
import torch
from helpers import STEPS, resume, start, state
from lightning.pytorch import Callback

from chargpt.errors import UserError


class Keeps(Callback):
    """Has a state, and puts something into each checkpoint."""

    def __init__(self, kind):
        self.kind = kind

    def state_dict(self):
        values = {"numpy": np.float64(9), "plain": {"best": 9.0, "seen": [1, None], "x": torch.ones(2)}}
        return {"value": values.get(self.kind)}

    def on_save_checkpoint(self, trainer, module, checkpoint):
        if self.kind == "extra":
            checkpoint["extra"] = np.float64(9)


@pytest.fixture
def keeps(monkeypatch):
    monkeypatch.syspath_prepend(str(__file__).rpartition("/")[0])
    return lambda kind: f"+callbacks.keeps={{_target_: test_saving.Keeps, kind: {kind}}}"


def test_a_state_that_could_not_be_loaded_is_refused_at_the_start(keeps, tiny, tmp_path):
    with pytest.raises(UserError, match="the state of the callback Keeps cannot be loaded as data"):
        start(tmp_path, *tiny, *STEPS, keeps("numpy"))
    assert not list((tmp_path / "checkpoints").iterdir())


def test_what_a_callback_adds_to_a_checkpoint_is_looked_at_too(keeps, tiny, tmp_path):
    with pytest.raises(UserError, match="extra"):
        start(tmp_path, *tiny, *STEPS, keeps("extra"))
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_state_of_plain_values_comes_back(keeps, tiny, tmp_path):
    start(tmp_path, *tiny, *STEPS, keeps("plain"))
    resume(tmp_path, keeps("plain"), "trainer.max_steps=13")
    assert state(tmp_path)["callbacks"]["Keeps"]["value"]["best"] == 9.0

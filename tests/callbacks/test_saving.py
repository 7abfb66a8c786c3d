"""What can be saved can be loaded; a checkpoint that is half written replaces nothing."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import STEPS, resume, start, state
from lightning.pytorch import Callback, Trainer

from chargpt.errors import UserError


class Keeps(Callback):
    """Has a value in its state or in the checkpoint, which from step 5 on may be one that cannot be loaded as data."""

    def __init__(self, kind):
        self.kind = kind
        self.value = {"best": 9.0, "x": torch.ones(2)}

    def on_train_batch_start(self, trainer, *_):
        if self.kind != "plain" and trainer.global_step >= 5:
            self.value = np.float64(9)

    def state_dict(self):
        return {"value": self.value if self.kind != "extra" else None}

    def on_save_checkpoint(self, trainer, module, checkpoint):
        checkpoint["extra_state"] = self.value if self.kind == "extra" else None


@pytest.fixture
def keeps(monkeypatch):
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    return lambda kind: f"+callbacks.keeps={{_target_: test_saving.Keeps, kind: {kind}}}"


@pytest.mark.parametrize(
    ("kind", "named"), [("state", "the state of the callback Keeps"), ("extra", r"checkpoint\['extra_state'\]")]
)
def test_a_state_that_could_not_be_loaded_is_refused(kind, named, keeps, tiny, tmp_path):
    """By name, and the checkpoint before it stays."""
    with pytest.raises(UserError, match=f"{named} cannot be loaded as data"):
        start(tmp_path, *tiny, *STEPS, keeps(kind))
    assert state(tmp_path)["global_step"] == 3
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_state_of_plain_values_comes_back(keeps, tiny, tmp_path):
    start(tmp_path, *tiny, keeps("plain"))
    resume(tmp_path, keeps("plain"), "trainer.max_steps=7")
    assert state(tmp_path)["callbacks"]["Keeps"]["value"]["best"] == 9.0


def test_a_save_that_fails_leaves_the_one_before(tiny, tmp_path, monkeypatch):
    whole_save, saves = Trainer.save_checkpoint, []

    def save(self, path, *arguments, **options):
        if Path(path).name == ".last.ckpt.tmp":
            saves.append(path)
        if len(saves) == 2:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        whole_save(self, path, *arguments, **options)

    monkeypatch.setattr(Trainer, "save_checkpoint", save)
    with pytest.raises(OSError, match="No space left"):
        start(tmp_path, *tiny, *STEPS)
    assert state(tmp_path)["global_step"] == 3
    assert not list((tmp_path / "checkpoints").glob(".*"))

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
    """Has a value in its state or in the checkpoint, which from step 5 on is one that cannot be loaded as data."""

    def __init__(self, extra):
        self.extra = extra
        self.value = {"best": 9.0, "x": torch.ones(2)}

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step >= 5:
            self.value = (lambda: 9) if self.extra else np.float64(9)

    def state_dict(self):
        return {"value": None if self.extra else self.value}

    def on_save_checkpoint(self, trainer, module, checkpoint):
        checkpoint["extra_state"] = self.value if self.extra else None


@pytest.mark.parametrize(("extra", "named"), [(False, "Keeps"), (True, "extra_state")])
def test_a_state_that_could_not_be_loaded_is_refused(extra, named, tiny, tmp_path, monkeypatch):
    """By name. The checkpoint before it stays, with its state of plain values, and the run resumes from it."""
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    keeps = f"+callbacks.keeps={{_target_: test_saving.Keeps, extra: {extra}}}"
    with pytest.raises(UserError, match=f"could not resume: {named} is not plain numbers"):
        start(tmp_path, *tiny, *STEPS, keeps)
    kept = state(tmp_path)
    assert kept["global_step"] == 3
    assert (kept["extra_state"] if extra else kept["callbacks"]["Keeps"]["value"])["best"] == 9.0
    assert not list((tmp_path / "checkpoints").glob(".*"))
    resume(tmp_path, keeps, "trainer.max_steps=5")
    assert state(tmp_path)["global_step"] == 5


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

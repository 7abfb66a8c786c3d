"""What can be saved can be loaded; a checkpoint that is half written replaces nothing."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import STEPS, resume, start, state
from lightning.pytorch import Callback, Trainer

from chargpt import files
from chargpt.errors import UserError


class Keeps(Callback):
    """Has a value of some kind in its state, or in the checkpoint."""

    def __init__(self, kind):
        self.kind = kind
        self.value = None

    def on_train_batch_start(self, *_):
        self.value = {"numpy": np.float64(9), "code": print, "plain": {"best": 9.0, "x": torch.ones(2)}}.get(self.kind)

    def on_validation_end(self, *_):
        self.value = np.float64(9) if self.kind == "late" else self.value

    def state_dict(self):
        return {"value": self.value}

    def on_save_checkpoint(self, trainer, module, checkpoint):
        if self.kind == "extra":
            checkpoint["extra_state"] = np.float64(9)


@pytest.fixture
def keeps(monkeypatch):
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    return lambda kind: f"+callbacks.keeps={{_target_: test_saving.Keeps, kind: {kind}}}"


@pytest.mark.parametrize(
    ("kind", "named", "last"),
    [
        ("numpy", "the state of the callback Keeps", None),
        ("code", "the state of the callback Keeps", None),
        ("extra", r"checkpoint\['extra_state'\]", None),
        ("late", "the state of the callback Keeps", 9),
    ],
)
def test_a_state_that_could_not_be_loaded_is_refused(kind, named, last, keeps, tiny, tmp_path):
    """At the first step where a callback has it, before hours are spent; at a save, the earlier one stays."""
    every = [] if kind in ("extra", "late") else ["callbacks.last_checkpoint.every_n_steps=1000"]
    with pytest.raises(UserError, match=f"{named} cannot be loaded as data"):
        start(tmp_path, *tiny, *STEPS, *every, keeps(kind))
    saved = tmp_path / "checkpoints" / "last.ckpt"
    assert (state(tmp_path)["global_step"] if saved.exists() else None) == last
    assert not list(saved.parent.glob(".*"))


def test_a_state_of_plain_values_comes_back(keeps, tiny, tmp_path):
    start(tmp_path, *tiny, *STEPS, keeps("plain"))
    resume(tmp_path, keeps("plain"), "trainer.max_steps=13")
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


def test_a_checkpoint_that_is_busy_for_a_moment_is_replaced_later(tiny, tmp_path, monkeypatch):
    """As on Windows, while a virus scanner has it open."""
    replace, tries = os.replace, []

    def busy(source, target):
        tries.append(Path(target).name)
        if tries.count("last.ckpt") in (2, 3):
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", busy)
    start(tmp_path, *tiny, *STEPS)
    assert state(tmp_path)["global_step"] == 12
    assert tries.count("last.ckpt") == 6

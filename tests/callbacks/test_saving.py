"""What can be saved can be loaded; a checkpoint that is half written replaces nothing."""

import os
import tempfile
from pathlib import Path

import pytest
from helpers import STEPS, curves, resume, start, state

from chargpt.errors import UserError


@pytest.mark.parametrize(("extra", "named"), [(False, "Keeps"), (True, "extra_state")])
def test_a_state_that_could_not_be_loaded_is_refused(extra, named, tiny, tmp_path):
    """By name. The checkpoint before it stays, with its state of plain values, and the run resumes from it."""
    keeps = f"+callbacks.keeps={{_target_: faults.Keeps, extra: {extra}}}"
    with pytest.raises(UserError, match=f"could not resume: {named} is not plain numbers"):
        start(tmp_path, *tiny, *STEPS, keeps)
    kept = state(tmp_path)
    assert kept["global_step"] == 3
    assert (kept["extra_state"] if extra else kept["callbacks"]["Keeps"]["value"])["best"] == 9.0
    assert not list((tmp_path / "checkpoints").glob(".*"))
    resume(tmp_path, keeps, "trainer.max_steps=5")
    assert state(tmp_path)["global_step"] == 5


def test_a_state_is_tried_before_the_first_step(tiny, tmp_path):
    keeps = "+callbacks.keeps={_target_: faults.Keeps, extra: false, value: {_target_: builtins.object}}"
    with pytest.raises(UserError, match="could not resume: Keeps"):
        start(tmp_path, *tiny, keeps)
    assert not list(tmp_path.glob("checkpoints/*"))


def test_lightnings_checkpoints_bear_their_steps(tiny, tmp_path, monkeypatch):
    """Also between logged steps; and saving needs no space in the system's temporary folder."""
    monkeypatch.setattr(tempfile, "tempdir", f"{tmp_path}/nowhere")
    mine = "_target_: lightning.pytorch.callbacks.ModelCheckpoint, save_top_k: -1, every_n_train_steps: 2, "
    more = ["trainer.max_steps=7", "trainer.val_check_interval=4", "trainer.log_every_n_steps=5"]
    start(tmp_path, *tiny, *more, f"+callbacks.mine={{{mine}dirpath: {tmp_path}/mine, filename: '{{step}}'}}")
    assert sorted(os.listdir(tmp_path / "mine")) == ["step=2.ckpt", "step=4.ckpt", "step=6.ckpt"]
    assert [step for step, _ in curves(tmp_path)["train/loss"]] == [5, 7]


def test_a_save_that_fails_leaves_the_one_before(tiny, tmp_path, monkeypatch, caplog):
    whole, saves = Path.write_bytes, []

    def write(file, content):
        if file.name == ".last.ckpt.tmp":
            saves.append(file)
        if len(saves) == 2:
            whole(file, b"half")
            raise OSError(28, "No space left on device")
        whole(file, content)

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(OSError, match="No space left"):
        start(tmp_path, *tiny, *STEPS)
    assert f"OSError after step 6; to resume: python train.py resume={tmp_path}" in caplog.text
    assert state(tmp_path)["global_step"] == 3
    assert not list((tmp_path / "checkpoints").glob(".*"))

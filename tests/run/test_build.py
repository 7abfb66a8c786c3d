"""From settings to the Trainer and its callbacks, and the precision that `auto` chooses."""

import pytest
import torch
from helpers import composed
from lightning.pytorch.callbacks import Checkpoint, ProgressBar

from chargpt.errors import UserError
from chargpt.run.build import build_callbacks, build_trainer, device_type, settle_precision, with_purge_step
from chargpt.run.config import read_config

LIGHTNING = "+callbacks.x={_target_: lightning.pytorch.callbacks.%s}"


def build(*overrides):
    settings = read_config(composed("run_dir=unused", "trainer.accelerator=cpu", *overrides))
    settle_precision(settings.trainer, None)
    return build_trainer(settings.trainer, build_callbacks(settings.callbacks))


def test_arguments_and_switches():
    """Steps are optimizer steps. Any argument of the Trainer can be given, with a plus or without, and Lightning's
    callbacks that do not count epochs."""
    switches = ["trainer.enable_progress_bar=false", "trainer.enable_checkpointing=false", "callbacks.losses=null"]
    given = ["trainer.accumulate_grad_batches=4", "+trainer.gradient_clip_val=0.5", "trainer.logger=false"]
    given.append("trainer.benchmark=true")  # not in conf/
    added = ("EarlyStopping, monitor: val/loss", "ModelCheckpoint, every_n_train_steps: 5", "LearningRateMonitor")
    given += [(LIGHTNING % each).replace("x", f"x{n}", 1) for n, each in enumerate(added)]
    trainer = build(*given)
    assert (trainer.max_steps, trainer.val_check_interval, trainer.check_val_every_n_epoch) == (5000, 2000, None)
    assert (trainer.num_devices, trainer.gradient_clip_val, trainer.logger) == (1, 0.5, None)
    assert {each.partition(",")[0] for each in added} < {type(each).__name__ for each in trainer.callbacks}
    trainer = build(*given[:4], *switches)
    assert not [each for each in trainer.callbacks if isinstance(each, ProgressBar | Checkpoint)]
    kinds = {type(each).__name__ for each in trainer.callbacks}
    assert "Throughput" in kinds
    assert "Losses" not in kinds


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.devcies=2", r"trainer\.devcies is not an argument .* did you mean trainer\.devices\?"),
        ("trainer.zzz=2", r"trainer\.zzz is not an argument of lightning\.pytorch\.Trainer \(there are accelerator, "),
        ("+trainer.callbacks=[]", r"trainer\.callbacks is not an argument"),
        ("trainer._target_=os.system", r"trainer\._target_ is not an argument"),
        ("trainer.max_steps=0", r"trainer\.max_steps must be a whole number of steps, at least 1; got 0"),
        ("trainer.val_check_interval=0.5", r"trainer\.val_check_interval must be a whole number"),
        ("trainer.min_steps=abc", r"trainer\.min_steps"),
        ("trainer.max_epochs=3", r"trainer\.max_epochs counts epochs"),
        ("trainer.precision=12", "trainer: .*12"),
        ("trainer.precision=16-mixed", r"a CPU has no trainer\.precision=16-mixed; trainer\.precision="),
        ("trainer.devices=0", "trainer: "),
        ("trainer.strategy=fsdp", r"trainer\.strategy=fsdp is not supported"),
        ("+callbacks.text_samples.colour=red", r"callbacks\.text_samples: .*colour"),
        ("callbacks.text_samples.length=0", r"callbacks\.text_samples.* at least 1"),
        ("callbacks.surprise.length=1", r"callbacks\.surprise: length must be at least 2; got 1"),
        ("+callbacks.mine._target_=no.such.Callback", r"callbacks\.mine: .*no\.such"),
        ("+callbacks.mine=5", r"callbacks\.mine: Cannot instantiate config of type int"),
        (LIGHTNING % "StochasticWeightAveraging, swa_lrs: 0.1", "counts epochs.*optimizer.schedule=linear"),
        (LIGHTNING % "EMAWeightAveraging", "does not save its average.*optimizer.schedule=linear"),
        (LIGHTNING % "GradientAccumulationScheduler, scheduling: {4: 2}", "use trainer.accumulate_grad_batches="),
        (LIGHTNING % "ModelPruning, pruning_fn: l1_unstructured, amount: 0.5", "ModelPruning counts epochs"),
        (LIGHTNING % "Timer, duration: '00:01:00:00', interval: epoch", "callbacks.x.interval=epoch counts epochs"),
        (LIGHTNING % "EarlyStopping, monitor: val/loss, check_on_train_epoch_end: true", "epoch_end=True counts"),
        (LIGHTNING % "ModelCheckpoint, every_n_epochs: 5", "callbacks.x.every_n_epochs=5 counts epochs"),
        ("+callbacks.mine._target_=builtins.dict", r"callbacks\.mine is not a Lightning callback"),
    ],
)
def test_what_is_refused(override, message):
    with pytest.raises(UserError, match=message):
        build(override)


@pytest.mark.parametrize(
    ("accelerator", "cuda", "mps", "expected"),
    [
        ("auto", True, False, "cuda"),
        ("gpu", False, True, "mps"),
        ("auto", False, False, "cpu"),
        ("cpu", True, True, "cpu"),
        ("cuda", False, False, None),
    ],
)
def test_the_device_that_a_precision_is_chosen_for(accelerator, cuda, mps, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    if expected:
        assert device_type(accelerator) == expected
    else:
        with pytest.raises(UserError, match=r"this machine has no trainer\.accelerator=cuda"):
            device_type(accelerator)


def test_of_several_loggers_each_tensorboard_drops_later_points():
    csv = {"_target_": "lightning.pytorch.loggers.CSVLogger"}
    board = {"_target_": "lightning.pytorch.loggers.TensorBoardLogger", "save_dir": "x"}
    assert with_purge_step([csv, board, board], 7) == [csv, *[board | {"purge_step": 7}] * 2]
    assert with_purge_step(False, 7) is False

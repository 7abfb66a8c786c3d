"""What a configuration becomes: the Trainer and its callbacks, and the precision that is chosen for `auto`."""

import os

import pytest
import torch
from helpers import composed
from lightning.pytorch.callbacks import Checkpoint, ProgressBar

from chargpt.errors import UserError
from chargpt.kernels.choice import Precision
from chargpt.run import build as room
from chargpt.run.build import build_callbacks, build_trainer, device_type, settle_precision
from chargpt.run.config import read_config


def build(*overrides):
    settings = read_config(composed("run_dir=unused", "trainer.accelerator=cpu", *overrides))
    settle_precision(settings.trainer, None)
    return build_trainer(settings.trainer, build_callbacks(settings.callbacks))


@pytest.fixture
def settings_of_torch():
    """What `trainer.deterministic` changes for the whole process is put back."""
    cublas = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    yield
    torch.use_deterministic_algorithms(False)
    if cublas is None:
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def test_defaults():
    trainer = build()
    assert (trainer.max_steps, trainer.val_check_interval, trainer.check_val_every_n_epoch) == (5000, 500, None)
    assert trainer.num_devices == 1


def test_steps_are_optimizer_steps():
    trainer = build("trainer.accumulate_grad_batches=4")
    assert trainer.val_check_interval == 2000
    assert trainer.max_steps == 5000


@pytest.mark.parametrize("plus", ["", "+"])
def test_any_argument_can_be_given(plus, settings_of_torch):
    """With a plus or without."""
    assert not torch.are_deterministic_algorithms_enabled()
    trainer = build(f"{plus}trainer.deterministic=true", "trainer.gradient_clip_val=0.5", "trainer.logger=false")
    assert torch.are_deterministic_algorithms_enabled()
    assert trainer.gradient_clip_val == 0.5
    assert trainer.logger is None


def test_switching_callbacks_off():
    trainer = build("trainer.enable_progress_bar=false", "trainer.enable_checkpointing=false")
    assert not [c for c in trainer.callbacks if isinstance(c, ProgressBar | Checkpoint)]
    assert "Throughput" in {type(c).__name__ for c in trainer.callbacks}
    trainer = build("callbacks.throughput=null")
    assert "Throughput" not in {type(c).__name__ for c in trainer.callbacks}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.devcies=2", r"trainer\.devcies is not an argument .* did you mean trainer\.devices\?"),
        ("+trainer.devcies=2", r"trainer\.devcies is not an argument .* did you mean trainer\.devices\?"),
        ("trainer.zzz=2", r"trainer\.zzz is not an argument of lightning\.pytorch\.Trainer \(there are accelerator, "),
        ("+trainer.callbacks=[]", r"trainer\.callbacks is not an argument"),
        ("trainer._target_=os.system", r"trainer\._target_ is not an argument"),
        (
            "trainer.max_steps=0",
            r"trainer\.max_steps must be a whole number of steps, .* below 2\*\*53; got 0",
        ),
        ("trainer.max_steps=many", r"trainer\.max_steps"),
        ("trainer.val_check_interval=0.5", r"trainer\.val_check_interval must be a whole number"),
        ("trainer.log_every_n_steps=0", r"trainer\.log_every_n_steps"),
        ("trainer.accumulate_grad_batches=-1", r"trainer\.accumulate_grad_batches"),
        ("trainer.precision=12", "trainer: .*12"),
        ("trainer.precision=16-mixed", r"a CPU has no trainer\.precision=16-mixed; trainer\.precision="),
        ("trainer.min_steps=6000", r"min_steps must be a whole number, at most trainer\.max_steps=5000; got 6000"),
        ("trainer.devices=0", "trainer: "),
        ("trainer.gradient_clip_val=-1", r"trainer\.gradient_clip_val must be a number, at least 0"),
        ("+callbacks.progress.colour=red", r"callbacks\.progress: .*colour"),
        ("callbacks.last_checkpoint.every_n_steps=0", r"callbacks\.last_checkpoint.* at least 1"),
        ("callbacks.text_samples.length=0", r"callbacks\.text_samples.* at least 1"),
        ("callbacks.surprise.length=1", r"callbacks\.surprise.* at least 2"),
        ("+callbacks.mine._target_=no.such.Callback", r"callbacks\.mine: .*no\.such"),
    ],
)
def test_what_is_refused(override, message):
    with pytest.raises(UserError, match=message):
        build(override)


@pytest.mark.parametrize(
    ("accelerator", "cuda", "mps", "expected"),
    [
        ("auto", True, False, "cuda"),
        ("gpu", True, False, "cuda"),
        ("auto", False, True, "mps"),
        ("gpu", False, True, "mps"),
        ("auto", False, False, "cpu"),
        ("cpu", True, True, "cpu"),
        ("cuda", True, False, "cuda"),
        ("tpu", False, False, "tpu"),
    ],
)
def test_the_device_that_a_precision_is_chosen_for(accelerator, cuda, mps, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert device_type(accelerator) == expected


def test_a_device_that_this_machine_lacks(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"this machine has no trainer\.accelerator=cuda"):
        device_type("cuda")


def test_a_precision_is_chosen_for_auto_alone(monkeypatch):
    asked = []
    best = Precision("bf16-mixed", "this is a test")
    monkeypatch.setattr(room, "best_precision", lambda device: asked.append(device) or best)
    auto, given = {"accelerator": "cpu", "precision": "auto"}, {"accelerator": "cpu", "precision": "32-true"}
    assert "this is a test" in settle_precision(auto, None)
    assert settle_precision(given, None) == ""
    assert (auto["precision"], given["precision"]) == ("bf16-mixed", "32-true")
    assert set(asked) == {"cpu"}


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        ("StochasticWeightAveraging, swa_lrs: 0.1", "use callbacks.averaging.decay="),
        ("EMAWeightAveraging", "use callbacks.averaging.decay="),
        ("GradientAccumulationScheduler, scheduling: {4: 2}", "use trainer.accumulate_grad_batches="),
        ("ModelPruning, pruning_fn: l1_unstructured, amount: 0.5", "ModelPruning counts epochs"),
        ("BackboneFinetuning", "BackboneFinetuning counts epochs"),
        ("Timer, duration: '00:01:00:00', interval: epoch", "callbacks.x.interval=epoch counts epochs"),
        ("EarlyStopping, monitor: val/loss, check_on_train_epoch_end: true", "check_on_train_epoch_end=True counts"),
        ("ModelCheckpoint, every_n_epochs: 5", "callbacks.x.every_n_epochs=5 counts epochs"),
    ],
)
def test_lightnings_callbacks_that_count_epochs_are_refused(callback, message):
    with pytest.raises(UserError, match=message):
        build(f"+callbacks.x={{_target_: lightning.pytorch.callbacks.{callback}}}")


@pytest.mark.parametrize(
    "callback", ["EarlyStopping, monitor: val/loss", "ModelCheckpoint, every_n_train_steps: 5", "LearningRateMonitor"]
)
def test_lightnings_other_callbacks_are_not(callback):
    build(f"+callbacks.x={{_target_: lightning.pytorch.callbacks.{callback}}}")

import pytest
import torch
from conftest import composed
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from omegaconf import OmegaConf

from chargpt.errors import UserError
from chargpt.trainer import best_precision, build_callbacks, build_trainer


def settings(*overrides):
    return OmegaConf.to_container(composed("run_dir=unused", "trainer.accelerator=cpu", *overrides), resolve=True)


def build(*overrides):
    config = settings(*overrides)
    return build_trainer(config["trainer"], build_callbacks(config["callbacks"]))


def test_defaults():
    trainer = build()
    assert (trainer.max_steps, trainer.val_check_interval, trainer.check_val_every_n_epoch) == (5000, 500, None)
    assert trainer.num_devices == 1


def test_steps_are_optimizer_steps():
    trainer = build("trainer.accumulate_grad_batches=4")
    assert trainer.val_check_interval == 2000
    assert trainer.max_steps == 5000


def test_any_argument_can_be_given():
    trainer = build("+trainer.deterministic=true", "trainer.gradient_clip_val=0.5", "trainer.logger=false")
    assert trainer.gradient_clip_val == 0.5
    assert trainer.logger is None


def test_switching_callbacks_off():
    trainer = build("+trainer.enable_progress_bar=false", "+trainer.enable_checkpointing=false")
    assert not [c for c in trainer.callbacks if isinstance(c, ProgressBar | Checkpoint)]
    trainer = build("callbacks.throughput=null")
    assert "Throughput" not in {type(c).__name__ for c in trainer.callbacks}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+trainer.devcies=2", r"trainer\.devcies is not an argument .* did you mean trainer\.devices\?"),
        ("+trainer.zzz=2", r"trainer\.zzz is not an argument of lightning\.pytorch\.Trainer \(there are accelerator, "),
        ("+trainer.callbacks=[]", r"trainer\.callbacks is not an argument"),
        ("trainer.max_steps=0", r"trainer\.max_steps must be a whole number of steps, at least 1; got 0"),
        ("trainer.max_steps=many", r"trainer\.max_steps"),
        ("trainer.val_check_interval=0.5", r"trainer\.val_check_interval must be a whole number"),
        ("trainer.log_every_n_steps=0", r"trainer\.log_every_n_steps"),
        ("trainer.accumulate_grad_batches=-1", r"trainer\.accumulate_grad_batches"),
        ("trainer.precision=12", "Precision 12 is invalid|precision"),
        ("trainer.devices=0", "trainer: "),
        ("trainer.gradient_clip_val=-1", r"trainer\.gradient_clip_val must be at least 0"),
        ("+callbacks.progress.colour=red", r"callbacks\.progress: .*colour"),
        ("callbacks.last_checkpoint.every_n_steps=0", r"callbacks\.last_checkpoint.* at least 1"),
        ("+callbacks.mine._target_=no.such.Callback", r"callbacks\.mine: .*no\.such"),
    ],
)
def test_what_is_refused(override, message):
    with pytest.raises(UserError, match=message):
        build(override)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, "bf16-mixed"),
        ({"amx_bf16": False, "avx512_bf16": True}, "bf16-mixed"),
        ({"amx_bf16": False, "avx512_bf16": False}, "32-true"),
        ({}, "32-true"),
    ],
)
def test_precision_on_cpus(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert best_precision("cpu") == best_precision("auto") == expected


@pytest.mark.parametrize("bf16", [True, False])
def test_precision_on_cuda(monkeypatch, bf16):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16 and not including_emulation)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {})
    for accelerator in ("auto", "gpu", "cuda"):
        assert best_precision(accelerator) == ("bf16-mixed" if bf16 else "32-true")
    assert best_precision("cpu") == "32-true"

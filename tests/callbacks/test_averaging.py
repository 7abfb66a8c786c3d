"""The average of the weights is what is validated, saved as best and sampled; training goes on from its own."""

import shutil

import pytest
import torch
from helpers import STEPS, assert_same, curves, resume, signal_at, start, state

from chargpt.callbacks import text_samples
from chargpt.callbacks.averaging import Averaging
from chargpt.errors import Stopped, UserError
from chargpt.evaluate import build_parser, score_checkpoint
from chargpt.module import CharLM
from chargpt.run.resume import load_state

DECAY = 0.3  # so small that it counts from the fourth step on: until then the average forgets faster
AVERAGING = [*STEPS, f"callbacks.averaging.decay={DECAY}"]


@pytest.fixture(scope="module")
def averaged(tiny, tmp_path_factory):
    """A run whose weights are averaged, and what it returned."""
    folder = tmp_path_factory.mktemp("averaged")
    return folder, start(folder, *tiny, *AVERAGING)


def nets(folder, key="state_dict"):
    """The model's weights in a run's last checkpoint."""
    return {name: value for name, value in state(folder)[key].items() if name.startswith("net.")}


def test_it_is_the_plain_formula(tiny, tmp_path, monkeypatch):
    """Over the weights after each step, the first of which it begins with."""
    seen = []

    def see(module, *_):
        seen.append({name: value.clone() for name, value in module.state_dict().items() if name.startswith("net.")})

    monkeypatch.setattr(CharLM, "on_train_batch_end", see)
    start(tmp_path, *tiny, *AVERAGING)
    average = seen[0]
    for n, each in enumerate(seen[1:], 1):
        decay = min(DECAY, (1 + n) / (10 + n))
        average = {name: decay * value + (1 - decay) * each[name] for name, value in average.items()}
    last = state(tmp_path)
    for name, value in average.items():
        torch.testing.assert_close(last["state_dict"][name], value)
        assert torch.equal(last["current_model_state"][name], seen[-1][name])
    assert not torch.equal(last["state_dict"]["net.lm_head.weight"], seen[-1]["net.lm_head.weight"])


def test_training_is_as_without_it(averaged, tiny, tmp_path):
    start(tmp_path, *tiny, *STEPS)
    folder, _ = averaged
    assert_same(state(tmp_path)["state_dict"].keys(), state(folder)["state_dict"].keys())
    assert_same(nets(folder, "current_model_state"), nets(tmp_path))
    ours, plain = curves(folder), curves(tmp_path)
    assert ours["train/loss"] == plain["train/loss"]
    assert ours["val/loss"] != plain["val/loss"]


def test_the_best_checkpoint_has_the_score_that_it_was_saved_for(averaged):
    folder, best = averaged
    for name in ("best.ckpt", "last.ckpt"):  # the loss falls until the end
        path = folder / "checkpoints" / name
        row = score_checkpoint(path, build_parser().parse_args([]))
        assert row["loss"] == pytest.approx(best, abs=1e-6)


def test_samples_are_the_averages(tiny, tmp_path, monkeypatch):
    heads, real = [], text_samples.generate
    monkeypatch.setattr(
        text_samples, "generate", lambda net, *rest: heads.append(net.lm_head.weight.clone()) or real(net, *rest)
    )
    start(tmp_path, *tiny, *AVERAGING)
    assert torch.equal(heads[-1], state(tmp_path)["state_dict"]["net.lm_head.weight"])


def test_it_can_begin_late_and_end_early(averaged, tiny, tmp_path):
    """Switched off, training goes on from its own weights, not from their average; switched on, likewise."""
    start(tmp_path / "plain", *tiny, *STEPS, "trainer.max_steps=16")
    with pytest.raises(Stopped):
        start(tmp_path / "off", *tiny, *AVERAGING, "trainer.max_steps=16", *signal_at(6))
    resume(tmp_path / "off", "+callbacks.stop=null", "callbacks.averaging.decay=null")
    assert_same(nets(tmp_path / "plain"), nets(tmp_path / "off"))
    with pytest.raises(Stopped):
        start(tmp_path / "on", *tiny, *STEPS, "trainer.max_steps=16", *signal_at(6))
    resume(tmp_path / "on", "+callbacks.stop=null", f"callbacks.averaging.decay={DECAY}")
    assert_same(nets(tmp_path / "plain"), nets(tmp_path / "on", "current_model_state"))
    assert not torch.equal(nets(tmp_path / "on")["net.lm_head.weight"], nets(tmp_path / "plain")["net.lm_head.weight"])


def test_switched_on_and_ended_before_a_step_nothing_is_lost(tiny, tmp_path, monkeypatch):
    start(tmp_path, *tiny, *STEPS)
    before = nets(tmp_path)
    monkeypatch.setattr(CharLM, "on_train_start", lambda module: setattr(module.trainer, "should_stop", True))
    resume(tmp_path, "trainer.max_steps=16", f"callbacks.averaging.decay={DECAY}")
    assert_same(before, nets(tmp_path))


def test_two_averages_are_refused(tiny, tmp_path):
    """Each would put its weights where the other put its own."""
    ema = "+callbacks.ema._target_=lightning.pytorch.callbacks.EMAWeightAveraging"
    message = r"two averages of the weights exclude each other: averaging, ema"
    with pytest.raises(UserError, match=message):
        start(tmp_path, *tiny, *AVERAGING, ema)


@pytest.mark.parametrize("value", ["abc", "0.9", "true"])
def test_what_is_no_averaging(value, tiny, tmp_path):
    with pytest.raises(UserError, match=r"callbacks\.averaging is not a Lightning callback"):
        start(tmp_path, *tiny, f"callbacks.averaging={value}")


def test_in_half_precision_it_is_refused(tiny, tmp_path):
    """Whose eight bits would round most of the average's small moves away."""
    with pytest.raises(UserError, match=r"callbacks\.averaging needs weights in single precision; .*bf16-true"):
        start(tmp_path, *tiny, *AVERAGING, "trainer.precision=bf16-true")


@pytest.mark.parametrize("decay", [0, 1, -0.5, float("nan")])
def test_out_of_range(decay):
    with pytest.raises(UserError, match=r"callbacks\.averaging\.decay must be between 0 and 1, both excluded, or null"):
        Averaging(decay)


def test_lightnings_own_averaging_is_saved_as_best_too(tiny, tmp_path):
    own = "lightning.pytorch.callbacks.EMAWeightAveraging"
    ema = [f"+callbacks.ema._target_={own}", "+callbacks.ema.decay=0.8"]
    best = start(tmp_path, *tiny, *STEPS, *ema)
    row = score_checkpoint(tmp_path / "checkpoints" / "best.ckpt", build_parser().parse_args([]))
    assert row["loss"] == pytest.approx(best, abs=1e-6)
    loaded = load_state(tmp_path)
    assert loaded.best_loss == best


DAMAGED = {
    "weights-missing": lambda state: state["current_model_state"].pop("net.lm_head.weight"),
    "weights-text": lambda state: state.update(current_model_state="abc"),
    "weights-shape": lambda state: state["current_model_state"].update({"net.lm_head.weight": torch.ones(2, 2)}),
    "count-missing": lambda state: state.pop("averaging_state"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_average_is_refused(name, averaged, tmp_path):
    shutil.copytree(averaged[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoints" / "previous.ckpt").unlink()
    damaged = state(tmp_path)
    DAMAGED[name](damaged)
    torch.save(damaged, tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError) as no:
        resume(tmp_path, "trainer.max_steps=14")
    assert "\n" not in str(no.value)

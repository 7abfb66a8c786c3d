"""The average of the weights is validated, saved as best and sampled; training continues from its own weights."""

import shutil

import pytest
import torch
from helpers import STEPS, assert_same, curves, resume, signal_at, start, state

from chargpt.callbacks import samples
from chargpt.callbacks.averaging import Averaging
from chargpt.callbacks.look import Surprise
from chargpt.errors import Stopped, UserError
from chargpt.evaluate import build_parser, score_checkpoint
from chargpt.module import CharLM

DECAY = 0.3  # small enough to hold from the fourth step on: until then the warm-up's decay is smaller
AVERAGING = [*STEPS, f"callbacks.averaging.decay={DECAY}"]


@pytest.fixture(scope="module")
def averaged(tiny, tmp_path_factory):
    """A run with an average, and the loss that it returned."""
    folder = tmp_path_factory.mktemp("averaged")
    return folder, start(folder, *tiny, *AVERAGING)


def nets(folder, key="state_dict"):
    """The model's weights in a run's last checkpoint."""
    return {name: value for name, value in state(folder)[key].items() if name.startswith("net.")}


def test_it_is_the_plain_formula(tiny, tmp_path, monkeypatch):
    """Over the weights after each step, beginning with those after the first."""
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


def test_training_is_the_same_as_without_it(averaged, tiny, tmp_path):
    start(tmp_path, *tiny, *STEPS)
    folder, _ = averaged
    assert_same(state(tmp_path)["state_dict"].keys(), state(folder)["state_dict"].keys())
    assert_same(nets(folder, "current_model_state"), nets(tmp_path))
    own, plain = curves(folder), curves(tmp_path)
    assert own["train/loss"] == plain["train/loss"]
    assert own["val/loss"] != plain["val/loss"]


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_the_checkpoints_have_the_score_that_was_validated(name, averaged):
    folder, best = averaged  # the loss falls until the end
    row = score_checkpoint(folder / "checkpoints" / name, build_parser().parse_args([]))
    assert row.score.loss == pytest.approx(best, abs=1e-6)


def test_samples_and_pictures_are_those_of_the_average_in_eval_mode(tiny, tmp_path, monkeypatch):
    seen, generate, draw = [], samples.generate, Surprise.draw

    def see(net):
        seen.append((net.training, net.lm_head.weight.clone()))

    monkeypatch.setattr(samples, "generate", lambda net, *rest: see(net) or generate(net, *rest))
    monkeypatch.setattr(Surprise, "draw", lambda self, net, *rest: see(net) or draw(self, net, *rest))
    start(tmp_path, *tiny, *AVERAGING)
    assert len(seen) == 6
    for training, weight in seen[-2:]:
        assert not training
        assert torch.equal(weight, state(tmp_path)["state_dict"]["net.lm_head.weight"])


def test_it_can_begin_late_and_end_early(tiny, tmp_path):
    """Both ways, training continues from its own weights."""
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


def test_a_resumed_run_that_ends_before_a_step_keeps_its_weights(tiny, tmp_path, monkeypatch):
    start(tmp_path, *tiny, *STEPS)
    before = nets(tmp_path)
    monkeypatch.setattr(CharLM, "on_train_start", lambda module: setattr(module.trainer, "should_stop", True))
    resume(tmp_path, "trainer.max_steps=16", f"callbacks.averaging.decay={DECAY}")
    assert_same(before, nets(tmp_path))


def test_a_decay_in_place_of_the_callback_is_refused(tiny, tmp_path):
    with pytest.raises(UserError, match=r"callbacks\.averaging is not a Lightning callback"):
        start(tmp_path, *tiny, "callbacks.averaging=0.9")


def test_in_half_precision_it_is_refused(tiny, tmp_path):
    """Eight bits would round most of the average's small changes away."""
    with pytest.raises(UserError, match=r"callbacks\.averaging needs weights in single precision; .*bf16-true"):
        start(tmp_path, *tiny, *AVERAGING, "trainer.precision=bf16-true")


@pytest.mark.parametrize("decay", [0, 1, -0.5, float("nan")])
def test_out_of_range(decay):
    with pytest.raises(UserError, match=r"callbacks\.averaging\.decay must be between 0 and 1, both excluded, or null"):
        Averaging(decay)


DAMAGED = {
    "weights-missing": lambda state: state["current_model_state"].pop("net.lm_head.weight"),
    "weights-text": lambda state: state.update(current_model_state="abc"),
    "weights-shape": lambda state: state["current_model_state"].update({"net.lm_head.weight": torch.ones(2, 2)}),
    "count-missing": lambda state: state.pop("averaging_state"),
    "count-text": lambda state: state.update(averaging_state={"n_averaged": "abc"}),
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

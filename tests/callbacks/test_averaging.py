"""The average of the weights is validated, saved as best and sampled; training continues from its own weights."""

import shutil
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from helpers import STEPS, assert_same, curves, resume, signal_at, start, state

from chargpt.callbacks import look
from chargpt.callbacks.averaging import Averaging
from chargpt.callbacks.look import Surprise
from chargpt.errors import Stopped, UserError
from chargpt.evaluate import score_checkpoint
from chargpt.module import CharLM

DECAY = 0.3  # small enough to hold from the fourth step on: until then the warm-up's decay is smaller
AVERAGING = [*STEPS, f"callbacks.averaging.decay={DECAY}"]


@pytest.fixture(scope="module")
def averaged(tiny, tmp_path_factory):
    """A run with an average, its best loss, its weights after each step, and the nets that wrote and were drawn: their
    mode and their last weights."""
    folder, weights, shown = tmp_path_factory.mktemp("averaged"), [], []
    generate, draw = look.generate, Surprise.draw

    def see(net):
        shown.append((net.training, net.lm_head.weight.clone()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CharLM, "on_train_batch_end", lambda module, *_: weights.append(nets_of(module.state_dict())))
        patch.setattr(look, "generate", lambda net, *rest: see(net) or generate(net, *rest))
        patch.setattr(Surprise, "draw", lambda self, net, *rest: see(net) or draw(self, net, *rest))
        drawing = [each for each in tiny if each != "callbacks.surprise=null"]
        best = start(folder, *drawing, *AVERAGING)
    return folder, best, weights, shown


def nets_of(state):
    return {name: value.clone() for name, value in state.items() if name.startswith("net.")}


def nets(folder, key="state_dict"):
    return nets_of(state(folder)[key])


def test_it_is_the_plain_formula(averaged):
    """Over the weights after each step, beginning with those after the first."""
    folder, _, weights, _ = averaged
    average = weights[0]
    for n, each in enumerate(weights[1:], 1):
        decay = min(DECAY, (1 + n) / (10 + n))
        average = {name: decay * value + (1 - decay) * each[name] for name, value in average.items()}
    for name, value in nets(folder).items():
        torch.testing.assert_close(value, average[name])
    assert_same(nets(folder, "current_model_state"), weights[-1])
    assert not torch.equal(average["net.lm_head.weight"], weights[-1]["net.lm_head.weight"])


def test_training_is_the_same_as_without_it(averaged, whole):
    folder = averaged[0]
    assert_same(state(whole)["state_dict"].keys(), state(folder)["state_dict"].keys())
    assert_same(nets(folder, "current_model_state"), nets(whole))
    own, plain = curves(folder), curves(whole)
    assert own["train/loss"] == plain["train/loss"]
    assert own["val/loss"] != plain["val/loss"]


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_the_checkpoints_have_the_score_that_was_validated(name, averaged):
    folder, best, *_ = averaged  # the loss falls until the end
    row = score_checkpoint(
        folder / "checkpoints" / name, Namespace(split=None, min_context=1, unknown="error", device="cpu")
    )
    assert row["loss"] == pytest.approx(best, abs=1e-6)


def test_samples_and_pictures_are_those_of_the_average_in_eval_mode(averaged):
    folder, _, _, shown = averaged
    assert len(shown) == 6
    for training, weight in shown[-2:]:
        assert not training
        assert torch.equal(weight, state(folder)["state_dict"]["net.lm_head.weight"])


def test_it_can_begin_late_and_end_early(whole, tiny, tmp_path):
    """Both ways, training continues from its own weights."""
    with pytest.raises(Stopped):
        start(tmp_path / "off", *tiny, *AVERAGING, *signal_at(6))
    resume(tmp_path / "off", "+callbacks.stop=null", "callbacks.averaging.decay=null")
    assert_same(nets(whole), nets(tmp_path / "off"))
    with pytest.raises(Stopped):
        start(tmp_path / "on", *tiny, *STEPS, *signal_at(6))
    resume(tmp_path / "on", "+callbacks.stop=null", f"callbacks.averaging.decay={DECAY}")
    assert_same(nets(whole), nets(tmp_path / "on", "current_model_state"))
    assert not torch.equal(nets(tmp_path / "on")["net.lm_head.weight"], nets(whole)["net.lm_head.weight"])


def test_in_half_precision_it_is_refused(tiny, tmp_path):
    with pytest.raises(UserError, match=r"callbacks\.averaging needs single precision; .*bf16-true"):
        start(tmp_path, *tiny, *AVERAGING, "trainer.precision=bf16-true")


@pytest.mark.parametrize(
    "harm",
    [
        lambda kept: kept["current_model_state"].pop("net.lm_head.weight"),
        lambda kept: kept["current_model_state"].update({"net.lm_head.weight": torch.ones(2, 2)}),
        lambda kept: kept.pop("averaging_state"),
    ],
)
def test_a_damaged_average_is_refused(harm, averaged, tmp_path):
    shutil.copytree(averaged[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoints" / "previous.ckpt").unlink()
    harm(damaged := state(tmp_path))
    torch.save(damaged, tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError) as no:
        resume(tmp_path, "trainer.max_steps=14")
    assert "\n" not in str(no.value)


def test_the_formula():
    """The first weights are soon forgotten: after n steps a step keeps at most (1 + n) / (10 + n) of the average."""
    module, callback = SimpleNamespace(net=torch.nn.Linear(1, 1, bias=False)), Averaging(decay=0.3)
    trainer = SimpleNamespace(precision="32-true", global_step=0)
    callback.on_fit_start(trainer, module)
    callback.on_train_start(trainer, module)
    expected = 0.0
    for n, weight in enumerate([8.0, 4.0, 2.0, 1.0, 5.0, 7.0]):
        torch.nn.init.constant_(module.net.weight, weight)
        trainer.global_step = n + 1
        callback.on_train_batch_end(trainer, module)
        decay = min(0.3, (1 + n) / (10 + n)) if n else 0.0
        expected = decay * expected + (1 - decay) * weight
    callback.swap(module)
    assert module.net.weight.item() == pytest.approx(expected)

"""Damaged and hostile states of training are refused, or restored only in part."""

import shutil

import pytest
import torch
from helpers import QUIET, assert_same, interrupt, resume, signal_at, state
from lightning.pytorch.callbacks import ModelCheckpoint

from chargpt.errors import UserError
from chargpt.run.state import paths_outside


@pytest.fixture(scope="module")
def stopped(tiny, tmp_path_factory):
    """A run that was stopped after step 6 of 12."""
    folder = tmp_path_factory.mktemp("stopped")
    interrupt(folder, *tiny, *QUIET, "optimizer.schedule=cosine", *signal_at(5))
    return folder


@pytest.fixture
def run(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "run")


def change(run, change):
    """Change the contents of the run's last checkpoint, and make the one before unusable."""
    kept = state(run)
    change(kept)
    torch.save(kept, run / "checkpoints" / "last.ckpt")
    (run / "checkpoints" / "previous.ckpt").write_bytes(b"")


def moments(kept):
    return kept["optimizer_states"][0]["state"]


@pytest.mark.parametrize(
    "harm",
    [
        lambda kept: moments(kept)[0].update(exp_avg=torch.zeros(1000, 1000)),
        lambda kept: moments(kept)[0].update(exp_avg="text"),
        lambda kept: moments(kept).update({0: {}}),
        lambda kept: kept.update(optimizer_states=[]),
        lambda kept: kept.update(optimizer_states=[{"state": {}, "param_groups": []}]),
        lambda kept: kept["optimizer_states"][0]["param_groups"][0].update(params=["a"]),
        lambda kept: kept["optimizer_states"][0]["param_groups"][0].pop("lr"),
        lambda kept: kept.update(loops={}),
        lambda kept: kept["loops"]["fit_loop"].update(state_dict=5),
        lambda kept: kept.update(callbacks=5),
        lambda kept: kept.update(random_states=[{"cpu": torch.zeros(3, dtype=torch.uint8)}]),
        lambda kept: moments(kept).clear(),
        lambda kept: [each.pop("exp_avg") for each in moments(kept).values()],
        lambda kept: [
            moments(kept)[0].update(step=torch.tensor(6, dtype=torch.float64)),
            kept["optimizer_states"][0]["param_groups"][0].update(fused=False),  # else PyTorch makes 32 bits of it
        ],
        lambda kept: kept["state_dict"].update(more=torch.zeros(3)),
        lambda kept: kept["hyper_parameters"].pop("corpus"),
        lambda kept: kept["hyper_parameters"].update(corpus={"name": "x", "sha256": "../../x"}),
    ],
)
def test_a_damaged_state_is_refused_in_one_line(harm, run):
    change(run, harm)
    before = (run / "checkpoints" / "last.ckpt").read_bytes()
    with pytest.raises(UserError) as no:
        resume(run, "+callbacks.stop=null")
    assert "\n" not in str(no.value)
    assert (run / "checkpoints" / "last.ckpt").read_bytes() == before


def test_options_of_the_optimizer_come_from_the_settings(run, tmp_path):
    """A run resumes as from an unchanged file."""
    options = {"lr": 5.0, "initial_lr": 5.0, "maximize": True, "weight_decay": 9.0, "betas": (0.0, 0.0), "fused": False}
    schedule = {"base_lrs": [7.0, 7.0], "last_epoch": 10**6, "step": 5}

    def harm(kept):
        kept["lr_schedulers"][0].update(schedule)
        for group in kept["optimizer_states"][0]["param_groups"]:
            group.update(options)

    other = shutil.copytree(run, tmp_path / "other")
    change(other, harm)
    for folder in (run, other):
        resume(folder, "+callbacks.stop=null")
    assert_same(state(run)["state_dict"], state(other)["state_dict"])


def test_paths_outside_of_the_run(tmp_path, monkeypatch):
    """Also relative ones, keys, and addresses."""
    monkeypatch.chdir(tmp_path)
    run, mine = tmp_path / "run", tmp_path / "mine"
    (run / "more").mkdir(parents=True)
    mine.mkdir()
    outside = ["mine", str(mine), f"{run}/more/../../mine", f"local://{mine}", f"zip::{mine}"]
    inside = [f"{run}/more", "none", "min", 5, None, torch.zeros(3)]
    for path in outside:
        for each in (path, {"a": {path: 1}}, [1, (path,)], {path}):
            assert [*paths_outside([inside, each], str(run))] == [path]
    assert not [*paths_outside([inside, {"a": inside}], str(run))]


def test_a_state_with_a_path_outside_of_the_run(run, tmp_path, caplog):
    """ModelCheckpoint would remove it as one of its checkpoints."""
    (tmp_path / "mine").mkdir()
    callback = ModelCheckpoint(monitor="val/loss")
    made = callback.state_dict() | {"best_k_models": {f"{tmp_path}/mine": torch.tensor(99.0)}}
    change(run, lambda kept: kept["callbacks"].update({callback.state_key: made}))
    mine = "{_target_: lightning.pytorch.callbacks.ModelCheckpoint, monitor: val/loss, dirpath: '${run_dir}/more'}"
    resume(run, "+callbacks.stop=null", f"+callbacks.more={mine}")
    assert "is not restored: it names" in caplog.text
    assert (tmp_path / "mine").is_dir()

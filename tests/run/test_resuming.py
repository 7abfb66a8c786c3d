"""Damaged and hostile states of training are refused, or restored only in part."""

import shutil
import struct
import subprocess
import sys

import pytest
import torch
from helpers import STEPS, resume, signal_at, start, state
from lightning.pytorch.callbacks import ModelCheckpoint

from chargpt.errors import Stopped, UserError


@pytest.fixture(scope="module")
def stopped(tiny, tmp_path_factory):
    """A run that was stopped after step 6 of 12."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Stopped):
        start(folder, *tiny, *STEPS, "optimizer.schedule=cosine", *signal_at(5))
    return folder


@pytest.fixture
def run(stopped, tmp_path):
    """A copy of it."""
    return shutil.copytree(stopped, tmp_path / "run")


def change(run, change):
    """Change the contents of the run's last checkpoint, and make the one before unusable."""
    kept = state(run)
    change(kept)
    torch.save(kept, run / "checkpoints" / "last.ckpt")
    (run / "checkpoints" / "previous.ckpt").write_bytes(b"")


def moments(kept):
    return kept["optimizer_states"][0]["state"]


def beyond_its_numbers():
    """A state with which PyTorch would read its next numbers from other memory of the process."""
    numbers = torch.get_rng_state()
    numbers[:24] = torch.tensor(list(struct.pack("<QiiQ", 1, 624, 1, 624)))
    return numbers


@pytest.mark.parametrize(
    "harm",
    [
        lambda kept: moments(kept)[0].update(exp_avg=torch.zeros(1000, 1000)),
        lambda kept: moments(kept)[0].update(exp_avg="text"),
        lambda kept: moments(kept)[0].update(exp_avg=torch.zeros(29, 16, dtype=torch.int64)),
        lambda kept: moments(kept).update({0: {}}),
        lambda kept: kept.update(optimizer_states=[]),
        lambda kept: kept.update(optimizer_states=[{"state": {}, "param_groups": []}]),
        lambda kept: kept["optimizer_states"][0]["param_groups"][0].update(params=["a"]),
        lambda kept: kept["optimizer_states"][0]["param_groups"][0].pop("lr"),
        lambda kept: kept.update(loops={}),
        lambda kept: kept["loops"]["fit_loop"].update(state_dict=5),
        lambda kept: kept.update(global_step=7),
        lambda kept: kept.update(epoch="x", callbacks={"RunRecord": 5}),
        lambda kept: kept.update(random_states=[{"cpu": torch.zeros(3, dtype=torch.uint8)}]),
        lambda kept: kept.update(random_states=[{"cpu": beyond_its_numbers()}]),
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


UNCHECKED = """
import torch
parameter = torch.nn.Parameter(torch.zeros(100_000))
parameter.grad = torch.ones(100_000)
optimizer = torch.optim.AdamW([parameter], fused=True)
optimizer.step()
kept = optimizer.state_dict()
kept["state"][0]["exp_avg"] = torch.zeros(3)
optimizer.load_state_dict(kept)
optimizer.step()
print("accepted", flush=True)
"""


def test_a_fused_optimizer_itself_does_not_check_shapes():
    """It reads and writes the memory behind, and may crash."""
    done = subprocess.run([sys.executable, "-c", UNCHECKED], capture_output=True, text=True)
    assert "Error" not in done.stderr
    assert "accepted" in done.stdout or done.returncode < 0


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 5.0, "initial_lr": 5.0},
        {"maximize": True, "weight_decay": 9.0, "betas": (0.0, 0.0)},
        {"fused": False},
    ],
)
def test_options_of_the_optimizer_come_from_the_settings(options, run, tmp_path):
    """A run resumes as from an unchanged file."""
    shutil.copytree(run, tmp_path / "other")
    change(
        tmp_path / "other",
        lambda kept: [group.update(options) for group in kept["optimizer_states"][0]["param_groups"]],
    )
    schedule = {"base_lrs": [7.0, 7.0], "last_epoch": 10**6, "step": 5}
    change(tmp_path / "other", lambda kept: kept["lr_schedulers"][0].update(schedule))
    for folder in (run, tmp_path / "other"):
        resume(folder, "+callbacks.stop=null")
    one, other = state(run), state(tmp_path / "other")
    assert all(torch.equal(one["state_dict"][name], other["state_dict"][name]) for name in one["state_dict"])


@pytest.mark.parametrize("kind", ["relative", "absolute", "parent", "key", "address"])
def test_a_state_with_a_path_outside_of_the_run(kind, run, tmp_path, monkeypatch, caplog):
    """ModelCheckpoint would remove it as one of its checkpoints."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    path = {"relative": "mine", "parent": f"{run}/checkpoints/../../mine", "address": f"local://{tmp_path}/mine"}.get(
        kind, f"{tmp_path}/mine"
    )
    callback = ModelCheckpoint(monitor="val/loss")
    made = callback.state_dict()
    made |= {"best_k_models": {path: torch.tensor(99.0)}} if kind == "key" else {"best_model_path": path}
    change(run, lambda kept: kept["callbacks"].update({callback.state_key: made}))
    mine = "{_target_: lightning.pytorch.callbacks.ModelCheckpoint, monitor: val/loss, dirpath: '${run_dir}/more'}"
    resume(run, "+callbacks.stop=null", f"+callbacks.more={mine}")
    assert "is not restored: it names" in caplog.text
    assert (tmp_path / "mine").is_dir()

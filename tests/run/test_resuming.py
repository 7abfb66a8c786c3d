"""States of training that are damaged or come from a stranger, as Lightning restores them."""

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
    """The same, to change."""
    return shutil.copytree(stopped, tmp_path / "run")


def change(run, change):
    """Change what the run's last checkpoint holds; the one before is none."""
    kept = state(run)
    change(kept)
    torch.save(kept, run / "checkpoints" / "last.ckpt")
    (run / "checkpoints" / "previous.ckpt").write_bytes(b"")


def moments(kept):
    return kept["optimizer_states"][0]["state"]


def beyond_its_numbers():
    """A state by which `torch.set_rng_state` would have the next numbers come from other memory of the process."""
    numbers = torch.get_rng_state()
    numbers[:24] = torch.tensor(list(struct.pack("<QiiQ", 1, 624, 1, 624)))
    return numbers


def test_pytorch_takes_such_a_state():
    torch.Generator().set_state(beyond_its_numbers())


@pytest.mark.parametrize(
    "harm",
    [
        lambda kept: moments(kept)[0].update(exp_avg=torch.zeros(3)),
        lambda kept: moments(kept)[0].update(exp_avg=torch.zeros(1000, 1000)),
        lambda kept: moments(kept)[0].update(exp_avg="text"),
        lambda kept: moments(kept)[0].update(exp_avg=torch.zeros(29, 16, dtype=torch.int64)),
        lambda kept: moments(kept).update({0: {}}),
        lambda kept: moments(kept).update({0: 5}),
        lambda kept: kept.update(optimizer_states=[]),
        lambda kept: kept.update(optimizer_states=[{"state": {}, "param_groups": []}]),
        lambda kept: kept["optimizer_states"][0]["param_groups"][0].update(params=["a"]),
        lambda kept: kept["optimizer_states"][0]["param_groups"][0].pop("lr"),
        lambda kept: kept["optimizer_states"][0]["param_groups"][0].update(lr="fast"),
        lambda kept: moments(kept)[0].update(exp_avg=[[torch.zeros(3)]]),
        lambda kept: kept.update(loops={}),
        lambda kept: kept.update(loops={"fit_loop": 5}),
        lambda kept: kept["loops"]["fit_loop"].update(state_dict=5),
        lambda kept: kept.update(global_step=7),
        lambda kept: kept.update(global_step=True),
        lambda kept: kept.update(epoch="x", callbacks={"RunRecord": 5}),
        lambda kept: kept.update(random_states=[{"cpu": torch.zeros(3, dtype=torch.uint8)}]),
        lambda kept: kept.update(random_states=5),
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


ATTACK = """
import torch
parameter = torch.nn.Parameter(torch.zeros(100_000))
parameter.grad = torch.ones(100_000)
optimizer = torch.optim.AdamW([parameter], fused=True)
optimizer.step()
kept = optimizer.state_dict()
kept["state"][0]["exp_avg"] = torch.zeros(3)
optimizer.load_state_dict(kept)
optimizer.step()
print("not noticed", flush=True)
"""


def test_the_first_of_these_is_an_attack():
    """A fused optimizer itself does not look: it reads and writes what lies behind, and may crash by that."""
    done = subprocess.run([sys.executable, "-c", ATTACK], capture_output=True, text=True)
    assert "Error" not in done.stderr
    assert "not noticed" in done.stdout or done.returncode < 0


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 5.0, "initial_lr": 5.0},
        {"maximize": True},
        {"weight_decay": 9.0},
        {"fused": False},
        {"betas": (0.0, 0.0)},
    ],
)
def test_the_settings_decide_not_the_file(options, run, tmp_path):
    """A run resumes as from an untouched file."""
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
    """ModelCheckpoint would remove it, as a checkpoint that it made before."""
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

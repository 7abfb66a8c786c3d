"""The benchmarks' own parts; what they measure is not for a test."""

import importlib
import math
from argparse import Namespace
from dataclasses import replace
from functools import partial

import pytest
import torch
from contender import note
from helpers import ROOT
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import optimizers, results
from benchmarks.measure import Measured, interleaved, spread, table
from benchmarks.peers import LECTURE, VOCABULARY, lecture, peer, peers
from benchmarks.sampling import flops_of_a_window, weights_read
from benchmarks.scaling import plot, rates, sizes
from benchmarks.training import chosen, flops_per_step, our_step
from chargpt.history import Point, add_losses, read_losses
from chargpt.kernels import choice
from chargpt.kernels.choice import Precision
from chargpt.model import GPT
from chargpt.optim import MuonConfig

SHARED = ("__init__", "measure", "peers")


@pytest.mark.parametrize(
    "name", sorted(file.stem for file in (ROOT / "benchmarks").glob("*.py") if file.stem not in SHARED)
)
def test_each_is_a_command(name):
    assert callable(importlib.import_module(f"benchmarks.{name}").main)


def test_of_a_script_only_definitions_are_run(tmp_path):
    file = tmp_path / "gpt.py"
    file.write_text(
        "import torch\nn = 3\nraise SystemExit('trained')\n"
        "class GPTLanguageModel(torch.nn.Linear):\n    def __init__(self):\n        super().__init__(n, vocab_size)\n"
    )
    assert lecture(file, "cpu").weight.shape == (65, 3)


def test_peers_without_others():
    arguments = Namespace(lecture=None, nanogpt=None, device="cpu")
    assert peers(arguments) == ["plain"]
    plain = peer("plain", arguments)
    _, loss = plain(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64))
    assert loss.item() == pytest.approx(math.log(65), rel=0.3)
    assert plain.generate(torch.zeros(1, 2, dtype=torch.int64), 3).shape == (1, 5)


def test_rounds_are_interleaved_and_processes_apart(tmp_path):
    file = tmp_path / "calls"
    sizes = {"a": 1, "b": 200_000_000}
    measured = interleaved({name: partial(note, file, name, size) for name, size in sizes.items()}, repeats=2)
    lines = file.read_text().splitlines()
    made = [line.split()[-1] for line in lines if line.startswith("made")]
    assert len(set(made)) == 2
    assert "".join(line[0] for line in lines if not line.startswith("made")) == "aabb" * 2
    assert {name: len(found.seconds) for name, found in measured.items()} == {"a": 2, "b": 2}
    assert measured["b"].megabytes - measured["a"].megabytes == pytest.approx(200, abs=50)


def test_sizes_vary_one_at_a_time():
    assert sizes("n_layer", 3) == (replace(LECTURE, n_layer=3), 64)
    assert sizes("batch_size", 8) == (LECTURE, 8)
    assert rates("block_size", 128, Measured([2.0, 4.0])) == [4096, 2048]


def test_optimizers_step_the_models_of_the_experiments():
    assert optimizers.sizes("lecture") == (LECTURE, 64)
    model, batch_size = optimizers.sizes("cpu")
    step = our_step("cpu", "fp32", None, replace(model, n_layer=1), batch_size, MuonConfig)
    step()


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    measured = {name: {1: Measured([1.0], 5.0), 2: Measured([0.5], 8.0)} for name in ("n_layer", "batch_size")}
    plot(measured, "a machine", tmp_path / "plot.svg")
    image = (tmp_path / "plot.svg").read_text()
    assert image.count("<!-- n_layer -->") == image.count("<!-- peak memory, GB -->") == 1


def test_curves_of_results(tmp_path, monkeypatch):
    """What has no curve is passed over."""
    (tmp_path / "a run").mkdir()
    (tmp_path / "empty").mkdir()
    for step, loss in ((10, 2.5), (20, 1.25), (30, 1.5)):
        add_losses(tmp_path / "a run", Point(step, step / 2, loss, loss, 1e4))
    monkeypatch.setattr("sys.argv", ["results", "--results", str(tmp_path)])
    results.main()
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    over_steps, over_time = results.draw({"a run": read_losses(tmp_path / "a run")}).axes
    assert over_steps.lines[0].get_xydata().tolist() == [[10, 2.5], [20, 1.25], [30, 1.5]]
    assert over_time.lines[0].get_xdata()[-1] == 0.25  # minutes
    assert over_time.get_legend().get_texts()[0].get_text() == "a run: 1.2500"


def test_the_results_that_are_committed_have_curves():
    folders = [each for each in results.RESULTS.iterdir() if each.is_dir()]
    assert folders
    assert all(read_losses(folder) for folder in folders)


def test_figures():
    assert spread([3.0, 1.0, 2.0], " s") == "2.00 s (1.00 to 3.00)"
    assert table([["a", "bb"], ["ccc", "d"]]).splitlines() == ["| a   | bb |", "|-----|----|", "| ccc | d  |"]
    assert flops_per_step(10, 0, 0, 7, 0) == 420


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_of_ours_learns(precision, monkeypatch):
    """It is the lecture's step but for its sizes; the library of matrix products is the one asked for."""
    monkeypatch.setattr(choice, "forced_onednn", None)
    made = []
    monkeypatch.setattr("benchmarks.training.compile_model", lambda net, *_: made.append(net))
    config = replace(LECTURE, block_size=8, n_layer=1, n_head=2, n_embd=16)
    step = our_step("cpu", precision, False, config, batch_size=2)
    assert choice.forced_onednn is False
    (net,) = made
    before = {name: value.clone() for name, value in net.state_dict().items()}
    step()
    assert net.training
    assert all(not torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("device", "precision", "onednn", "expected"),
    [
        ("cpu", "32-true", False, ("chargpt, PyTorch", "fp32")),
        ("cpu", "bf16-mixed", True, ("chargpt, oneDNN", "bf16")),
        ("cuda", "bf16-mixed", True, ("chargpt", "bf16")),
    ],
)
def test_the_row_that_a_run_would_choose(device, precision, onednn, expected, monkeypatch):
    monkeypatch.setattr(choice, "best_precision", lambda device: Precision(precision, "of the test"))
    monkeypatch.setattr(
        choice, "uses_onednn", lambda dtype: onednn and (dtype == torch.bfloat16) == ("bf16" in precision)
    )
    assert chosen(device) == expected


def test_bounds_of_sampling():
    """Against PyTorch's own count of a window's products, which takes attention for twice what is needed of it."""
    with torch.device("meta"):
        model = GPT(LECTURE, VOCABULARY).eval()
        idx = torch.zeros(1, LECTURE.block_size, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(idx, model.new_cache(1))
    assert 0.9 < flops_of_a_window(model) / counter.get_total_flops() < 1
    assert weights_read(model) == 4 * (10_788_929 - 256 * 384)

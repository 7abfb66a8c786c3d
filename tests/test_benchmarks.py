"""The parts of the benchmarks; their figures are not tested."""

import importlib
import math
from argparse import Namespace
from dataclasses import replace
from functools import partial

import pytest
import torch
from contender import note
from helpers import ROOT

from benchmarks import costs, results, text
from benchmarks.measure import Measured, interleaved, spread, table
from benchmarks.peers import LECTURE, lecture, peer, peers
from benchmarks.scaling import plot, rates, sizes
from benchmarks.training import our_step
from chargpt.history import Point, read_losses
from chargpt.kernels import choice

SHARED = ("__init__", "measure", "peers")
COMMANDS = sorted(file.stem for file in (ROOT / "benchmarks").glob("*.py") if file.stem not in SHARED)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_is_a_command_in_the_documents(name):
    assert callable(importlib.import_module(f"benchmarks.{name}").main)
    assert f"python -m benchmarks.{name}" in (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")


def test_only_definitions_of_a_script_run(tmp_path):
    file = tmp_path / "gpt.py"
    file.write_text(
        "import torch\nn = 3\nraise SystemExit('trained')\n"
        "class GPTLanguageModel(torch.nn.Linear):\n    def __init__(self):\n        super().__init__(n, vocab_size)\n"
    )
    assert lecture(file, "cpu").weight.shape == (65, 3)


def test_the_plain_model_is_always_a_peer():
    arguments = Namespace(lecture=None, nanogpt=None, device="cpu")
    assert peers(arguments) == ["plain"]
    plain = peer("plain", arguments)
    _, loss = plain(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64))
    assert loss.item() == pytest.approx(math.log(65), rel=0.3)
    assert plain.generate(torch.zeros(1, 2, dtype=torch.int64), 3).shape == (1, 5)


@pytest.mark.processes
def test_rounds_are_interleaved_in_separate_processes(tmp_path):
    file = tmp_path / "calls"
    held = {"a": 1, "b": 200_000_000}  # bytes
    measured = interleaved({name: partial(note, file, name, size) for name, size in held.items()}, repeats=2)
    names, processes = zip(*map(str.split, file.read_text().splitlines()), strict=True)
    assert "".join(names) == "aabb" * 2
    assert len(set(processes)) == 2
    assert [len(found.seconds) for found in measured.values()] == [2, 2]
    assert measured["b"].megabytes - measured["a"].megabytes == pytest.approx(200, abs=50)


def test_sizes_vary_one_at_a_time(tmp_path):
    assert sizes("n_layer", 3) == (replace(LECTURE, n_layer=3), 64)
    assert sizes("batch_size", 8) == (LECTURE, 8)
    assert rates("block_size", 128, Measured([2.0, 4.0])) == [4096, 2048]
    measured = {name: {1: Measured([1.0], 5.0), 2: Measured([0.5], 8.0)} for name in ("n_layer", "batch_size")}
    plot(measured, "a machine", tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").read_text().count("<!-- n_layer -->") == 1


def test_steps_are_those_of_the_experiments():
    steps = costs.experiments(half=False)
    assert (steps["lecture"].model, steps["lecture"].B, steps["lecture"].optimizer) == (LECTURE, 64, "adamw")
    assert steps["cpu"].optimizer == "muon"
    costs.work(replace(steps["cpu"], model=replace(steps["cpu"].model, n_layer=1), B=2), "fp32")()()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_trains_all_weights(precision, monkeypatch):
    monkeypatch.setattr(choice, "forced_onednn", None)
    made = []
    monkeypatch.setattr("benchmarks.training.compile_model", lambda net, *_: made.append(net))
    config = replace(LECTURE, block_size=8, n_layer=1, n_head=2, n_embd=16)
    step = our_step("cpu", precision, False, config, batch_size=2)
    [net] = made
    before = {name: value.clone() for name, value in net.state_dict().items()}
    step()
    assert net.training
    assert all(not torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_texts_are_encoded_and_drawn_from(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "set by prepare")
    monkeypatch.setattr(text, "BATCHES", 2)
    text.write(tmp_path / "text", "ab", 2, files=4)
    assert len(list((tmp_path / "text").glob("*.txt.gz"))) == 1
    encoded, found, drawn, _ = text.prepare(str(tmp_path / "text"), str(tmp_path / "cache"))
    assert min(encoded, found, drawn) > 0


def test_curves_of_results():
    curve = [Point(step, step / 2, loss, loss, 1e4) for step, loss in ((10, 2.5), (20, 1.25), (30, 1.5))]
    over_steps, over_time = results.draw({"a run": curve}).axes
    assert over_steps.lines[0].get_xydata().tolist() == [[10, 2.5], [20, 1.25], [30, 1.5]]
    assert over_time.lines[0].get_xdata()[-1] == 0.25  # minutes
    assert over_time.get_legend().get_texts()[0].get_text() == "a run: 1.2500"
    assert any(read_losses(folder) for folder in results.RESULTS.iterdir())


def test_figures():
    assert spread([3.0, 1.0, 2.0], " s") == "2.00 s (1.00 to 3.00)"
    assert table([["a", "bb"], ["ccc", "d"]]).splitlines() == ["| a   | bb |", "|-----|----|", "| ccc | d  |"]

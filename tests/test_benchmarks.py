"""The benchmarks' own parts; what they measure is not for a test."""

import importlib
import math
import os
from argparse import Namespace
from functools import partial

import pytest
import torch

from benchmarks.measure import Measured, interleaved, spread, table
from benchmarks.peers import SEED, PlainGPT, lecture, peer, peers
from benchmarks.scaling import plot, rates, sizes
from benchmarks.training import flops_per_step
from chargpt.model import GPT


@pytest.mark.parametrize("name", ["training", "sampling", "encoding", "overhead", "scaling"])
def test_each_is_there(name):
    assert callable(importlib.import_module(f"benchmarks.{name}").main)


def test_the_plain_model_is_the_lectures():
    sizes = {"vocab_size": 11, "block_size": 12, "n_layer": 2, "n_head": 3, "n_embd": 24, "dropout": 0.2}
    plain, ours = PlainGPT(**sizes).double().eval(), GPT(**sizes).double().eval()
    state = {name.replace("ffwd.", "ffwd.net."): value for name, value in plain.state_dict().items()}
    ours.load_state_dict(state)
    idx = torch.randint(11, (3, 12))
    torch.testing.assert_close(plain(idx), ours(idx), rtol=1e-10, atol=1e-12)


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
    _, loss = peer("plain", arguments)(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64))
    assert loss.item() == pytest.approx(math.log(65), rel=0.3)


def note(file, name, size):
    """A contender that notes each of its calls."""
    held = bytearray(size)
    with open(file, "a") as out:
        out.write(f"made {name} in {os.getpid()}\n")

    def work():
        with open(file, "a") as out:
            out.write(f"{name} {len(held) > 0}\n")

    return work


def test_rounds_are_interleaved_and_processes_apart(tmp_path):
    file = tmp_path / "calls"
    sizes = {"a": 1, "b": 200_000_000}
    measured = interleaved({name: partial(note, file, name, size) for name, size in sizes.items()}, repeats=2)
    lines = file.read_text().splitlines()
    made = [line.split()[-1] for line in lines if line.startswith("made")]
    assert len(set(made)) == 2
    assert "".join(line[0] for line in lines if not line.startswith("made")) == "ab" * 3
    assert {name: len(found.seconds) for name, found in measured.items()} == {"a": 2, "b": 2}
    assert measured["b"].megabytes - measured["a"].megabytes == pytest.approx(200, abs=50)


def test_sizes_vary_one_at_a_time():
    assert sizes("n_layer", 3) == ({**SEED, "n_layer": 3}, 64)
    assert sizes("batch_size", 8) == (SEED, 8)
    assert rates("block_size", 128, Measured([2.0, 4.0])) == [4096, 2048]


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    measured = {name: {1: Measured([1.0], 5.0), 2: Measured([0.5], 8.0)} for name in ("n_layer", "batch_size")}
    plot(measured, "a machine", tmp_path / "plot.svg")
    image = (tmp_path / "plot.svg").read_text()
    assert image.count("<!-- n_layer -->") == image.count("<!-- peak memory, GB -->") == 1


def test_figures():
    assert spread([3.0, 1.0, 2.0], " s") == "2.00 s (1.00 to 3.00)"
    assert table([["a", "bb"], ["ccc", "d"]]).splitlines() == ["| a   | bb |", "|-----|----|", "| ccc | d  |"]
    assert flops_per_step(10, 0, 0, 7, 0) == 420

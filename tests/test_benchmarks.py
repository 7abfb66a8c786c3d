"""The benchmarks' own parts; what they measure is not for a test."""

import importlib
from argparse import Namespace

import pytest
import torch

from benchmarks.measure import interleaved, spread, table
from benchmarks.peers import PlainGPT, lecture, peers
from benchmarks.training import flops_per_step
from chargpt.model import GPT


@pytest.mark.parametrize("name", ["training", "sampling", "encoding", "overhead"])
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
    assert list(peers(Namespace(lecture=None, nanogpt=None, device="cpu"))) == ["plain"]


def test_rounds_are_interleaved(capsys):
    order = []
    taken = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=3)
    assert "".join(order) == "abababab"
    assert {name: len(times) for name, times in taken.items()} == {"a": 3, "b": 3}


def test_figures():
    assert spread([3.0, 1.0, 2.0], " s") == "2.00 s (1.00 to 3.00)"
    assert table([["a", "bb"], ["ccc", "d"]]).splitlines() == ["| a   | bb |", "|-----|----|", "| ccc | d  |"]
    assert flops_per_step(10, 0, 0, 7, 0) == 420

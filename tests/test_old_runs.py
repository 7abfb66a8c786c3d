"""Runs of an earlier version go on and are sampled; tests/old_runs/README.md says what they are."""

import json
import shutil

import pytest
from helpers import ROOT, run_script, state

from chargpt.checkpoint import load_checkpoint

OLD = ROOT / "tests" / "old_runs"
EXPECTED = json.loads((OLD / "expected.json").read_text())


@pytest.mark.parametrize("name", EXPECTED)
def test_it_goes_on_to_the_end_that_it_had(name, tmp_path):
    """Some steps more, in today's code: validation losses and weights are those of the version that made the run."""
    shutil.copytree(OLD / name, tmp_path / name)
    found, expected = tmp_path / name, EXPECTED[name]
    steps, text = f"trainer.max_steps={expected['steps']}", "data.path=tests/old_runs/verse.txt"
    done = run_script("train.py", f"resume={found}", steps, text)
    assert done.returncode == 0, done.stderr
    found = state(found)
    assert found["global_step"] == expected["steps"]
    assert float(found["state_dict"]["best_val_loss.min_value"]) == pytest.approx(expected["best_val_loss"], rel=1e-5)
    for weight, norm in expected["norms"].items():
        assert found["state_dict"][weight].norm().item() == pytest.approx(norm, rel=1e-5, abs=1e-5), weight


@pytest.mark.parametrize("name", EXPECTED)
def test_it_is_sampled(name):
    _, tokenizer = load_checkpoint(OLD / name)
    assert tokenizer.characters == "".join(sorted(set((OLD / "verse.txt").read_text())))
    done = run_script("sample.py", "--ckpt", str(OLD / name), "--prompt", "7 green", "--max-new-tokens", "30")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) == len("7 green") + 30 + 1

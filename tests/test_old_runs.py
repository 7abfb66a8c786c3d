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
    """Four steps more, in today's code: validation losses and weights are those of the version that made the run.

    That version drew a random number for each validation; with dropout, the steps after one differ a little since.
    """
    shutil.copytree(OLD / name, tmp_path / name)
    done = run_script(
        "train.py", f"resume={tmp_path / name}", "trainer.max_steps=8", "data.path=tests/old_runs/verse.txt"
    )
    assert done.returncode == 0, done.stderr
    found, expected = state(tmp_path / name), EXPECTED[name]
    assert found["global_step"] == 8
    near = 1e-5 if name == "bigram" else 3e-3
    assert float(found["state_dict"]["best_val_loss.min_value"]) == pytest.approx(expected["best_val_loss"], rel=near)
    for weight, norm in expected["norms"].items():
        assert found["state_dict"][weight].norm().item() == pytest.approx(norm, rel=near, abs=near), weight


@pytest.mark.parametrize("name", EXPECTED)
def test_it_is_sampled(name):
    _, tokenizer = load_checkpoint(OLD / name)
    assert tokenizer.characters == "".join(sorted(set((OLD / "verse.txt").read_text())))
    done = run_script("sample.py", "--ckpt", str(OLD / name), "--prompt", "7 green", "--max-new-tokens", "30")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) == len("7 green") + 30 + 1

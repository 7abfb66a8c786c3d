"""What the README tells people to type exists and runs; what it says about the project is so."""

import re
import shlex
import sys
import tomllib

import pytest
from conftest import ROOT, composed, run_script

from chargpt.compiling import PAYS_AFTER
from sample import build_parser
from train import train

README = (ROOT / "README.md").read_text()
LINES = [
    line.split(" #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]
TRAIN = [shlex.split(line)[2:] for line in LINES if line.startswith("python train.py")]
SAMPLE = [shlex.split(line.split(" <")[0])[2:] for line in LINES if line.startswith("python sample.py")]


def test_every_command_is_tried():
    known = (
        "python train.py",
        "python sample.py",
        "python -m pip install -c constraints.txt -e ",
        "tensorboard --logdir ",
    )
    assert LINES
    assert all(line.startswith(known) for line in LINES)


@pytest.mark.parametrize("arguments", [each for each in TRAIN if "resume=" in " ".join(each)], ids=" ".join)
def test_resume_commands(arguments, tiny, tmp_path):
    """In a folder that has an interrupted run of the name that the command gives."""
    run = tmp_path / "outputs" / "2026-01-31" / "12-00-00"
    first = run_script("train.py", *tiny, f"hydra.run.dir={run}", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    done = run_script("train.py", *arguments, "trainer.max_steps=8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Run: outputs/2026-01-31/12-00-00, from step 6" in done.stderr


RUNS = [each for each in TRAIN if "-m" not in each and "resume=" not in " ".join(each)]


@pytest.mark.parametrize("overrides", RUNS, ids=" ".join)
def test_train_commands(overrides, tiny, text_file, tmp_path):
    """Each as it stands, made small: sizes and text are replaced, since a test has neither the time nor the network."""
    kept = [each for each in overrides if not each.startswith(("data=", "data.path="))]
    composed(*overrides, f"run_dir={tmp_path}")
    small = [each for each in tiny if "bigram" not in str(kept) or not re.match(r"model\.n_", each)]
    train(composed(*kept, *small, f"run_dir={tmp_path}"))
    assert (tmp_path / "checkpoints" / "best.ckpt").exists()


def test_sweep_command(tiny, tmp_path):
    (overrides,) = [each for each in TRAIN if "-m" in each]
    done = run_script(
        "train.py", *overrides, *[each for each in tiny if "n_layer" not in each], f"hydra.sweep.dir={tmp_path}"
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*/checkpoints/best.ckpt"))) == 4


@pytest.mark.parametrize("arguments", SAMPLE, ids=" ".join)
def test_sample_commands(arguments, tiny_run, tmp_path, monkeypatch, capsys):
    import io

    import sample

    for name in ("stdout", "stderr"):
        monkeypatch.setattr(getattr(sys, name), "reconfigure", lambda **_: None, raising=False)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ROMEO: good night\n")))
    monkeypatch.chdir(tmp_path)
    build_parser().parse_args(arguments)
    small = ["--ckpt", str(tiny_run), "--unknown", "skip", "--max-new-tokens", "20", "--device", "cpu"]
    assert sample.main([*arguments, *small]) == 0, capsys.readouterr().err


def test_configuration_table():
    """Each default that the table names is the default."""
    cfg = composed("run_dir=x")
    for group, text in re.findall(r"^\| `(model|data|optimizer|trainer)` \| (.*) \|$", README, re.MULTILINE):
        for key, value in re.findall(r"(\w+)=([\w.,\[\]-]+)", text):
            found = cfg[group][key]
            assert str(list(found) if value[0] == "[" else found).replace(" ", "") == str(_number(value)), (group, key)


def _number(text):
    try:
        return float(text) if "e-" in text else text
    except ValueError:
        return text


def test_the_steps_from_which_a_run_is_compiled():
    assert f"in runs of {PAYS_AFTER:,} steps or more on CUDA" in README


def test_layout_names_every_file():
    listed = set(re.findall(r"^(\S+\.py) ", README, re.MULTILINE))
    there = {
        str(f.relative_to(ROOT)) for f in [*ROOT.glob("*.py"), *ROOT.glob("chargpt/*.py")] if f.stat().st_size > 60
    }
    assert listed == there


def test_length():
    assert len(README.splitlines()) <= 200


def test_pictures_exist():
    for target in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / target).is_file()


def test_tested_versions_are_admitted():
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    for text in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        requirement = Requirement(text)
        assert pinned[requirement.name] in requirement.specifier
    assert pinned["torch"] == "2.13.0"

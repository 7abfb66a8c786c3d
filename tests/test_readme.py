"""What the README tells people to type exists and runs; what it says about the project is so."""

import io
import itertools
import math
import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import pytest
from helpers import ROOT, composed, run_fresh, run_script
from omegaconf import OmegaConf
from packaging.requirements import Requirement

import sample
from benchmarks.results import renewed
from chargpt import compare, evaluate, share
from chargpt.page import __main__ as page
from chargpt.run.build import build_callbacks
from train import train

README = (ROOT / "README.md").read_text(encoding="utf-8")
EXTEND = README[README.index("## Extend") : README.index("## Speed")]


def commands(text: str) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]


LINES = commands(README.replace(EXTEND, ""))
TRAIN = [shlex.split(line)[2:] for line in LINES if line.startswith("python train.py")]
SCORE = [shlex.split(line)[3:] for line in LINES if line.startswith("python -m chargpt.evaluate")]
PAGES = [shlex.split(line)[3:] for line in LINES if line.startswith("python -m chargpt.page")]
SHARE = [shlex.split(line)[3:] for line in LINES if line.startswith("python -m chargpt.share")]
SAMPLE = [shlex.split(line.split(" <")[0])[2:] for line in LINES if line.startswith("python sample.py")]
RUNS = [each for each in TRAIN if "-m" not in each and not re.search("resume=|init_from=", " ".join(each))]
RESUME = [each for each in TRAIN if "-m" not in each and "resume=" in " ".join(each)]
SWEEPS = [each for each in TRAIN if "-m" in each and "hydra/" not in " ".join(each)]  # others: test_sweeps.py


def test_every_command_is_tried():
    known = (
        "python train.py",
        "python sample.py",
        "python -m chargpt.evaluate",
        "python -m chargpt.compare",
        "python -m chargpt.share",
        "python -m chargpt.page",
        "python -m venv .venv && ",
        "python -m pip install -c constraints.txt -e ",
        "tensorboard --logdir ",
        'eval "$(python train.py -sc install=bash)"',
    )
    assert LINES
    assert all(line.startswith(known) for line in LINES)


@pytest.mark.parametrize("arguments", RESUME, ids=" ".join)
def test_resume_commands(arguments, tiny, tmp_path):
    """In a folder that has an interrupted run of the name that the command gives."""
    named = re.search("outputs/[^ ]+", " ".join(arguments))
    run = tmp_path / (named[0] if named else "outputs/2026-01-31/12-00-00")
    first = run_script("train.py", *tiny, f"hydra.run.dir={run}", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    done = run_script("train.py", *arguments, "trainer.max_steps=8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"Run: {run.relative_to(tmp_path)}, from step 6" in done.stderr


@pytest.mark.parametrize("overrides", RUNS, ids=" ".join)
def test_train_commands(overrides, tiny, tmp_path, caplog):
    """Each as it stands, made small: sizes and text are replaced, since a test has neither the time nor the network."""
    caplog.set_level("INFO")
    cfg = composed(*overrides, f"run_dir={tmp_path}")
    if "Wandb" in str(overrides):  # it is not among our packages: what it would be called with is looked at
        assert cfg.trainer.logger == {
            "_target_": "lightning.pytorch.loggers.WandbLogger",
            "save_dir": str(tmp_path),
            "name": "chargpt",
            "version": None,
        }
        return
    [own] = [each.removeprefix("data.path=") for each in tiny if each.startswith("data.path=")]
    named = [re.sub(r"(_path=).*", rf"\1{own}", each) for each in overrides]
    kept = [each for each in named if not each.startswith(("data=", "data.path=", "trainer.max_steps="))]
    small = [each for each in tiny if "bigram" not in str(kept) or not re.match(r"model\.n_", each)]
    train(composed(*kept, *small, f"run_dir={tmp_path}"))
    if "fast_dev_run" not in str(overrides):
        assert (tmp_path / "checkpoints" / "best.ckpt").exists()
    if "CSVLogger" in str(overrides):
        assert "val/loss" in (tmp_path / "csv" / "metrics.csv").read_text()
        assert f"Metrics:     {tmp_path / 'csv'}" in caplog.text
    assert ("See curves:" in caplog.text) == ("CSVLogger" not in str(overrides) and "fast_dev" not in str(overrides))
    if "profiler" in str(overrides):
        assert "run_training_batch" in caplog.text
    if "EarlyStopping" in str(overrides):
        (early,) = build_callbacks({"early": OmegaConf.to_container(cfg.callbacks.early)})
        assert (early.monitor, early.patience, early.mode) == ("val/loss", 3, "min")


@pytest.mark.parametrize("overrides", [each for each in TRAIN if "init_from=" in " ".join(each)], ids=" ".join)
def test_init_commands(overrides, tiny, tiny_run, tmp_path):
    kept = [each for each in overrides if not each.startswith(("data=", "data.path=", "init_from="))]
    small = [each for each in tiny if not each.startswith("model.")]
    train(composed(*kept, *small, f"init_from={tiny_run}", f"run_dir={tmp_path}"))
    assert (tmp_path / "checkpoints" / "best.ckpt").exists()


@pytest.mark.processes
@pytest.mark.parametrize("overrides", SWEEPS, ids=" ".join)
def test_sweep_commands(overrides, tiny, tmp_path):
    """And the comparison of what they made."""
    swept = [each.partition("=")[0] for each in overrides if "," in each]
    small = [each for each in tiny if each.partition("=")[0] not in swept]
    kept = [each for each in overrides if "sweep.dir" not in each]
    jobs = math.prod(each.count(",") + 1 for each in overrides)
    done = run_script("train.py", *kept, *small, f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*/checkpoints/best.ckpt"))) == jobs
    assert compare.main([str(tmp_path)]) == 0
    assert f"{jobs} of {jobs} jobs finished" in done.stderr


@pytest.fixture(scope="module")
def tested_run(tiny, tmp_path_factory):
    """One on a text of three parts."""
    folder = tmp_path_factory.mktemp("tested")
    train(composed(*tiny, "data.split=[0.8,0.1,0.1]", f"run_dir={folder}"))
    return folder


@pytest.mark.parametrize("arguments", SCORE, ids=" ".join)
def test_score_commands(arguments, tested_run, text_file, capsys):
    replaced = {"--ckpt": str(tested_run), "--text": str(text_file), "--stride": "8"}
    small = [replaced.get(before, each) for before, each in itertools.pairwise(["", *arguments])]
    assert evaluate.main(["--ckpt", str(tested_run), *small]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("arguments", SHARE, ids=" ".join)
def test_share_commands(arguments, tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert share.main([*arguments, "--ckpt", str(tiny_run)]) == 0, capsys.readouterr().err
    assert sample.main(["--ckpt", arguments[0], "--max-new-tokens", "5", "--device", "cpu"]) == 0


@pytest.mark.parametrize("arguments", PAGES, ids=" ".join)
def test_page_commands(arguments, tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert page.main([*arguments, "--ckpt", str(tiny_run)]) == 0, capsys.readouterr().err
    assert [file.suffix for file in tmp_path.iterdir()] == [".html"]


def test_the_demo_is_a_page_as_it_is_made_now():
    """Where the page's scripts have changed since, `python -m benchmarks.results` makes it anew."""
    text = (ROOT / "docs" / "demo.html").read_text(encoding="utf-8")
    assert text == renewed(text)
    assert len(text) < 1_400_000  # the README says 1.3 MB


@pytest.mark.parametrize("arguments", SAMPLE, ids=" ".join)
def test_sample_commands(arguments, tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ROMEO: good night\n")))
    monkeypatch.chdir(tmp_path)
    sample.build_parser().parse_args(arguments)
    small = ["--ckpt", str(tiny_run), "--unknown", "skip", "--max-new-tokens", "20", "--device", "cpu"]
    assert sample.main([*arguments, *small]) == 0, capsys.readouterr().err


def test_completion():
    """What the shell is told to call answers with the options of a group."""
    environment = {"COMP_LINE": "python train.py model=", "COMP_POINT": "22", "COMP_CWORD": "2"}
    done = run_fresh("train.py", "-sc", "query=bash", env=environment)
    assert "model=bigram" in done.stdout, done.stderr


@pytest.mark.processes
def test_from_python(tmp_path):
    (block,) = re.findall(r"```python\n(import torch\n.*?)```", README, re.DOTALL)
    code = "import torch; torch.set_num_threads(1)\n" + block
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) == 200


SECTIONS = dict(re.findall(r"^\*\*(An? .*?)\*\*(.*?)(?=^\*\*|\Z)", EXTEND, re.DOTALL | re.MULTILINE))


@pytest.mark.processes
@pytest.mark.parametrize("what", SECTIONS)
def test_extending(what, tiny, tmp_path):
    """In a copy of the project: the file is written, or its end, or lines of it; then the command trains."""
    shutil.copytree(ROOT / "chargpt", tmp_path / "chargpt")
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    shutil.copy(ROOT / "train.py", tmp_path)
    for language, block in re.findall(r"```(python|yaml|diff)\n(.*?)```", SECTIONS[what], re.DOTALL):
        if language == "diff":
            file = tmp_path / re.findall(r"`(chargpt/\S+\.py)`", SECTIONS[what])[0]
            text = file.read_text()
            for old, new in re.findall(r"((?:^-.*\n)+)((?:^\+.*\n)+)", block, re.MULTILINE):
                old, new = (re.sub(r"^[+-]", "", lines, flags=re.MULTILINE) for lines in (old, new))
                assert text.count(old) == 1
                text = text.replace(old, new)
            file.write_text(text)
        else:
            header, body = block.split("\n", 1)
            file = tmp_path / re.match(r"# ([^ ,]+)", header)[1]
            with file.open("a" if "at the end" in header else "x") as out:
                out.write(f"\n\n{body}")
    (command,) = commands(SECTIONS[what])
    given = [each for each in shlex.split(command)[2:] if not each.startswith("python")]
    small = [each for each in tiny if not each.startswith("data") or "data=" not in command]
    done = run_fresh("train.py", *small, *given, "hydra.run.dir=run", cwd=tmp_path, script_folder=tmp_path)
    assert done.returncode == 0, done.stderr
    stored = (tmp_path / "run" / ".hydra" / "config.yaml").read_text()
    assert shlex.split(command)[-1].split("=")[1] in stored


def test_the_extensions_are_all_tried():
    assert list(SECTIONS) == ["A callback", "A source of text", "An optimizer", "An option of the model"]


def test_pictures_and_links_exist():
    for target in re.findall(r"\]\(((?!http|#)[^)]*)\)", README):
        assert (ROOT / target).is_file(), target
    headings = {
        re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in re.findall(r"^#+ (.*)$", README, re.M)
    }
    for anchor in re.findall(r"\]\(#([^)]*)\)", README):
        assert anchor in headings


def test_tested_versions_are_admitted():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().lower().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    extras = [text for extra in project["optional-dependencies"].values() for text in extra]
    for requirement in map(Requirement, [*project["dependencies"], *extras]):
        if requirement.name != "chargpt":  # one extra names others
            assert pinned[requirement.name] in requirement.specifier

"""The commands of the README and of docs/extend.md run; links, versions and the demo are right."""

import io
import itertools
import math
import re
import shlex
import shutil
import sys
import tomllib

import pytest
from helpers import ROOT, composed, run_fresh, run_script
from packaging.requirements import Requirement

import sample
from benchmarks.results import renewed
from chargpt import compare, evaluate, share
from chargpt.page import __main__ as page
from chargpt.run.config import prepared
from train import train

README = (ROOT / "README.md").read_text(encoding="utf-8")
EXTEND = README[README.index("## Extend") : README.index("**The tests**")]
EXAMPLES = EXTEND + (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")


def commands(text: str) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [re.split(r" +#| <", line)[0] for block in blocks for line in block.splitlines()]


LINES = commands(README.replace(EXTEND, ""))
TRAIN = [shlex.split(line)[2:] for line in LINES if line.startswith("python train.py")]
SWEEPS = [each for each in TRAIN if "-m" in each]
RESUME = [each for each in TRAIN if "resume=" in str(each) and each not in SWEEPS]
RUNS = [each for each in TRAIN if each not in SWEEPS + RESUME]
TOOLS = {
    "python sample.py": sample.main,
    "python -m chargpt.page": page.main,
    "python -m chargpt.evaluate": evaluate.main,
    "python -m chargpt.share": share.main,
}
TOOL_LINES = [line for line in LINES if line.startswith(tuple(TOOLS))]


def test_every_command_is_tried():
    others = "python -m (venv .venv && |pip install -c constraints.txt -e |chargpt.compare)|tensorboard --logdir |eval "
    rest = [line for line in LINES if not line.startswith(("python train.py", *TOOLS))]
    assert LINES
    assert all(re.match(others, line) for line in rest)


@pytest.mark.parametrize("overrides", RUNS, ids=" ".join)
def test_train_commands(overrides, tiny, tiny_run, text_file, tmp_path, monkeypatch, caplog):
    """With small sizes, on copies of the tests' text."""
    if "Wandb" in str(overrides):  # not installed
        logger = composed(*overrides, f"run_dir={tmp_path}").trainer.logger
        options = {"name": "chargpt", "version": None, "save_dir": str(tmp_path)}
        assert logger == {"_target_": "lightning.pytorch.loggers.WandbLogger"} | options
        return
    caplog.set_level("INFO")
    monkeypatch.chdir(tmp_path)
    for name in ("my.txt", "val.txt", "test.txt", "a.txt", "folder/b.txt", "books/c.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(text_file, name)
    typed = [re.sub("(init_from=).*", rf"\1{tiny_run}", each) for each in overrides if "max_steps" not in each]
    fixed = ["data=", "data.path="] if "data=" in str(typed) else []
    fixed += ["model."] if "init_from=" in str(typed) else ["model.n_"] if "model=bigram" in typed else []
    small = [*(each for each in tiny if not each.startswith(tuple(fixed))), "trainer.limit_val_batches=2"]
    train(composed(*prepared([*typed, *small, f"run_dir={tmp_path}"])))
    assert (tmp_path / "checkpoints" / "best.ckpt").exists() != ("trainer.fast_dev_run=true" in overrides)
    assert any(tmp_path.rglob("metrics.csv")) == ("CSVLogger" in str(overrides))
    assert ("run_training_batch" in caplog.text) == ("trainer.profiler=simple" in overrides)


@pytest.mark.parametrize("arguments", RESUME, ids=" ".join)
def test_resume_commands(arguments, tiny, tmp_path):
    named = re.search("outputs/[^ ]+", " ".join(arguments))
    run = tmp_path / (named[0] if named else "outputs/2026-01-31/12-00-00")
    run_script("train.py", *tiny, f"hydra.run.dir={run}", cwd=tmp_path)
    done = run_script("train.py", *arguments, "trainer.max_steps=8", cwd=tmp_path)
    assert f"Run: {run.relative_to(tmp_path)}, from step 6" in done.stderr


@pytest.mark.processes
@pytest.mark.parametrize("overrides", SWEEPS, ids=" ".join)
def test_sweep_commands(overrides, tiny, tmp_path):
    swept = [each.partition("=")[0] for each in overrides if "," in each]
    small = [each for each in tiny if each.partition("=")[0] not in swept]
    kept = [each for each in overrides if "sweep.dir" not in each]
    jobs = math.prod(each.count(",") + 1 for each in overrides)
    quiet = ("callbacks.text_samples=null", "callbacks.losses=null", "trainer.max_steps=3")
    done = run_script("train.py", *kept, *small, *quiet, f"hydra.sweep.dir={tmp_path}")
    assert len(list(tmp_path.glob("*/checkpoints/best.ckpt"))) == jobs
    assert compare.main([str(tmp_path)]) == 0
    assert f"{jobs} of {jobs} jobs finished" in done.stderr


@pytest.mark.parametrize("line", TOOL_LINES)
def test_commands_on_a_run(line, tiny_run, text_file, tmp_path, monkeypatch, capsys):
    """On a run of the tests, which knows few characters; a text of 20."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ROMEO: good night\n")))
    monkeypatch.chdir(tmp_path)
    [tool] = [tool for tool in TOOLS if line.startswith(tool)]
    replaced = {"--ckpt": str(tiny_run), "--text": str(text_file), "--min-context": "8", "--stop": "fell"}
    typed = shlex.split(line.removeprefix(tool))
    arguments = ["--ckpt", str(tiny_run), *(replaced.get(a, b) for a, b in itertools.pairwise(["", *typed]))]
    if tool == "python sample.py":
        arguments += ["--unknown", "skip", "--max-new-tokens", "20", "--device", "cpu"]
    assert TOOLS[tool](arguments) == 0, capsys.readouterr().err
    made = {"python -m chargpt.page": ".html", "python -m chargpt.share": ""}
    assert made.get(tool) in (None, *(file.suffix for file in tmp_path.iterdir()))


@pytest.mark.processes
def test_completion():
    environment = {"COMP_LINE": "python train.py model=", "COMP_POINT": "22", "COMP_CWORD": "2"}
    done = run_fresh("train.py", "-sc", "query=bash", status=None, env=environment)
    assert "model=bigram" in done.stdout, done.stderr


def test_from_python(tmp_path, monkeypatch, capsys):
    """With fewer steps."""
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(import torch\n.*?)```", EXAMPLES, re.DOTALL)
    assert "max_steps=100" in block
    exec(block.replace("max_steps=100", "max_steps=2"), {})
    assert len(capsys.readouterr().out) == 200


@pytest.mark.processes
def test_extending(tiny, tmp_path):
    """In a copy of the project, with the files of all examples; then it trains with the options of all commands."""
    for folder in ("chargpt", "conf"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "train.py", tmp_path)
    for header, body in re.findall(r"```(?:python|yaml)\n# (.*?)\n(.*?)```", EXAMPLES, re.DOTALL):
        name, _, where = header.partition(", ")
        with (tmp_path / name).open("a" if where == "at the end" else "x") as out:
            out.write(f"\n\n{body}")
    typed = [override for command in commands(EXAMPLES) for override in shlex.split(command)[2:]]
    small = [*(each for each in tiny if not each.startswith("data")), "trainer.limit_val_batches=2"]
    done = run_fresh("train.py", *small, *typed, "hydra.run.dir=run", cwd=tmp_path, script_folder=tmp_path)
    assert "val loss" in done.stdout
    settings = (tmp_path / "run" / ".hydra" / "config.yaml").read_text()
    assert all(text in settings for text in ("name: sgd", "momentum: 0.8", "source: python_code"))


def test_the_demo_has_the_current_scripts():
    """If not, run `python -m benchmarks.results`."""
    text = (ROOT / "docs" / "demo.html").read_text(encoding="utf-8")
    assert text == renewed(text)
    assert len(text) < 1_400_000  # the README says 1.3 MB


@pytest.mark.parametrize(
    "file", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda file: file.name
)
def test_links_and_pictures_exist(file):
    headings = [re.sub(r"[^\w -]", "", title).lower() for title in re.findall(r"^#+ (.*)$", README, re.M)]
    anchors = [title.replace(" ", "-") for title in headings]
    text = file.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(((?!http)[^)]*)\)", text) + re.findall(r'src="([^"]*)"', text):
        name, _, anchor = target.partition("#")
        assert (file.parent / name).exists(), target
        assert not anchor or anchor in anchors, target


def test_tested_versions_are_allowed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().lower().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    extras = [text for extra in project["optional-dependencies"].values() for text in extra]
    for requirement in map(Requirement, [*project["dependencies"], *extras]):
        if requirement.name != "chargpt":  # an extra that names others
            assert pinned[requirement.name] in requirement.specifier

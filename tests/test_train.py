"""`train(cfg)` from end to end, and `train.py` on the command line."""

import os
import re
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, STEPS, curves, events, run_fresh, run_script, start, state, texts

from chargpt.history import read_losses
from chargpt.run.report import verdict


def steps(folder, tag):
    return [step for step, _ in curves(folder)[tag]]


def test_curves(tiny_run):
    found = curves(tiny_run)
    for tag in ("train/loss", "train/grad_norm", "lr"):
        assert [step for step, _ in found[tag]] == [2, 4, 6], tag
    assert [event.step for event in events(tiny_run).Scalars("chars_per_second")] == [2, 4, 6]
    val = ["val/loss", "val/perplexity", "val/bpc", "val/accuracy", "val/best_loss"]
    for tag in val:
        assert sorted(set(steps(tiny_run, tag))) == [3, 6], tag
    loss, perplexity, bpc, accuracy, _ = (found[tag][-1][1] for tag in val)
    assert perplexity == pytest.approx(torch.tensor(loss).exp().item(), rel=1e-5)
    assert bpc == pytest.approx(loss / 0.6931472, rel=1e-5)
    assert 0 < accuracy < 1


def test_accumulation_keeps_steps_true(tiny, tiny_run, tmp_path):
    """Two batches per step; every count stays one of optimizer steps. The last step is validated and saved. Another
    seed has other weights."""
    start(tmp_path, *tiny, "trainer.accumulate_grad_batches=2", "trainer.max_steps=4", "seed=7")
    assert steps(tmp_path, "val/loss") == [3, 4]
    assert steps(tmp_path, "train/loss") == steps(tmp_path, "train/grad_norm") == [2, 4]
    assert state(tmp_path)["global_step"] == 4
    one, other = (state(folder)["state_dict"]["net.lm_head.weight"] for folder in (tiny_run, tmp_path))
    assert not torch.equal(one, other)


def test_without_checkpoints_and_with_a_progress_bar(tiny, tmp_path):
    start(tmp_path, *tiny, "trainer.enable_checkpointing=false", "trainer.enable_progress_bar=true")
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


# The command line


def test_a_run_by_hand(tiny, tmp_path):
    """Its messages; the same in its log; a line break in the name of a text is escaped."""
    text = tmp_path / "two\nlines.txt"
    text.write_text("".join(chr(97 + n % 7) for n in range(2000)))
    done = run_script("train.py", *tiny, *STEPS, f"data.path={text}", f"hydra.run.dir={tmp_path}/run")
    assert done.stdout == ""
    time, ending = r"\d+ s \(.+, \d+ threads?\)", re.escape(verdict(read_losses(tmp_path / "run"), 12))
    assert ending
    for pattern in (
        r"^Text: .*/two\\nlines\.txt, 2,000 characters, 7 of them distinct \(training 1,800, validation 200\)$",
        r"^Model: gpt, [\d,]+ parameters, on cpu in 32-true",
        r"step 4/12, loss \d\.\d{4}, val loss \d\.\d{4}, [\d,]+ chars/s, 0:00:\d\d left",
        rf"^Best validation loss \d\.\d{{4}} \(nats per character, on .*lines\.txt\), 12 steps in {time}\n{ending}$",
        rf"^Checkpoint:  {tmp_path}/run/checkpoints/best\.ckpt$",
        rf"^Sample it:   python sample\.py --ckpt {tmp_path}/run$",
        rf"^Look inside: python -m chargpt\.page --ckpt {tmp_path}/run$",
        rf"^See curves:  tensorboard --logdir {tmp_path}/run$",
    ):
        assert re.search(pattern, done.stderr, re.MULTILINE), (pattern, done.stderr)
    assert "Warning" not in done.stderr
    log = (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
    assert "Best validation loss" in log
    assert {"config.yaml", "overrides.yaml"} == {file.name for file in (tmp_path / "run" / ".hydra").iterdir()}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.n_layer=["], "cannot read model.n_layer=["),
        (["seed=4294967296"], "seed must be"),
        (["callbacks=null"], "Config group override must be a string"),
        (["--resolve"], "The --resolve flag can only be used in conjunction with --cfg"),
    ],
)
def test_bad_input_is_one_line(overrides, message, tiny, tmp_path):
    text = [each for each in tiny if each.startswith("data")]
    done = run_script("train.py", *overrides, *text, f"hydra.run.dir={tmp_path}/run", status=2)
    assert done.stdout == ""
    [line] = [line for line in done.stderr.splitlines() if not line.startswith("Encoding ")]
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_output_folder_that_cannot_be_written(tiny, tmp_path):
    (tmp_path / "file").touch()
    for option in ([f"hydra.run.dir={tmp_path}/file/run"], ["-m", f"hydra.sweep.dir={tmp_path}/file/runs", "seed=1,2"]):
        done = run_script("train.py", *option, *tiny, status=2)
        assert re.fullmatch(rf"error: Not a directory: .*{tmp_path}/file/run.*\n", done.stderr)


def test_hydra_may_change_the_directory(tiny, text_file, tmp_path):
    """Paths stay relative to where the command was typed."""
    (tmp_path / "t.txt").write_text(text_file.read_text(encoding="utf-8"), encoding="utf-8")
    line = [*tiny, "data.path=t.txt", "hydra.job.chdir=true", "trainer.max_steps=1"]
    for option in (["hydra.run.dir=run", "hydra/job_logging=disabled"], ["-m", "seed=1,2", "hydra.sweep.dir=sweep"]):
        run_script("train.py", *option, *line, cwd=tmp_path)


HIDE = """
import runpy, sys
import chargpt.kernels as private
operators = [name for name, value in vars(private).items() if callable(value) and name[0].islower()]
operators = [name for name in operators if getattr(private, name).__module__ != private.__name__]
assert len(operators) == 2
for name in operators:
    setattr(private, name, None)
sys.modules["triton"] = None
sys.argv[0] = "train.py"
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.processes
def test_without_pytorchs_private_operators_and_without_a_compiler(tiny, tiny_run, text_file, tmp_path):
    """As on Windows with its old encoding, where the terminal cannot show the name of the text; in a notebook, which
    sets MPLBACKEND. The losses are the same up to rounding, and files are written and read in UTF-8."""
    text = tmp_path / "道德經 ő.txt"
    text.write_text(text_file.read_text(encoding="utf-8"), encoding="utf-8")
    arguments = [*tiny, f"data.path='{text}'", "compile=auto", f"hydra.run.dir={tmp_path}/run"]
    environment = {"PATH": str(tmp_path), "CC": "", "CXX": "no-compiler", "MPLBACKEND": "nosuchbackend"}
    environment |= {"PYTHONIOENCODING": "cp1252", "PYTHONWARNDEFAULTENCODING": "1", "OMP_NUM_THREADS": "1"}
    variables = os.environ | environment | {"PYTHONWARNINGS": "default"}
    command = [sys.executable, "-c", HIDE, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, encoding="cp1252", timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Logging error" not in done.stderr
    warnings = [line for line in done.stderr.splitlines() if "Warning" in line]
    assert [line for line in warnings if "EncodingWarning" not in line] == []
    # A file opened without an encoding would be read and written in another one on Windows.
    project = (f"{ROOT / 'chargpt'}{os.sep}", "train.py:")  # not packages in a virtual environment below
    assert [line for line in warnings if line.startswith(project)] == []
    assert "道德經 ő.txt" in (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
    assert len(texts(tmp_path / "run", "sample")) == 2
    for tag in ("train/loss", "val/loss"):
        plain, private = (dict(curves(folder)[tag]) for folder in (tmp_path / "run", tiny_run))
        assert plain == pytest.approx(private, rel=1e-4)
    run_script("train.py", f"resume={tmp_path}/run", "trainer.max_steps=7")
    assert "道德經 ő.txt" in texts(tmp_path / "run", "config")[-1][1]


@pytest.mark.processes
def test_a_link_to_the_script_and_a_full_disk(tmp_path):
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    options = {"capture_output": False, "stderr": subprocess.PIPE, "script_folder": tmp_path}
    with open("/dev/full", "w") as full:
        done = run_fresh("train.py", "--cfg", "job", "run_dir=x", status=2, stdout=full, **options)
    assert done.stderr == "error: No space left on device\n"


@pytest.mark.slow
@pytest.mark.skipif("CHARGPT_DATA_DIR" not in os.environ, reason="needs the real text, in CHARGPT_DATA_DIR")
def test_the_cpu_experiment_reaches_its_loss(tmp_path):
    """Its whole schedule, in 200 of its 900 steps."""
    short = ["trainer.max_steps=200", "trainer.val_check_interval=200"]
    done = run_script("train.py", "experiment=cpu", *short, f"hydra.run.dir={tmp_path}/run")
    assert "Text: tiny Shakespeare" in done.stderr
    loss = float(re.search(r"Best validation loss ([\d.]+)", done.stderr)[1])
    assert loss <= 1.82
    assert int(re.search(r"([\d,]+) parameters", done.stderr)[1].replace(",", "")) <= 1_500_000

"""What is shown of an error, and the exit status."""

import errno
import logging
import subprocess
import sys
import unicodedata

import pytest
from helpers import ROOT, composed, run_script

from chargpt import errors
from chargpt.errors import EscapingFormatter, NonFiniteError, Stopped, UserError, did_you_mean, escape
from chargpt.run.config import hydra_errors


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("n_layr", "; did you mean model.n_layer?"),
        ("embd", "; did you mean model.n_embd?"),
        ("zzz", " (there are n_embd, n_head, n_layer)"),
    ],
)
def test_the_nearest_key_or_all(key, expected):
    assert did_you_mean(key, iter(["n_layer", "n_head", "n_embd"]), "model.") == expected


def test_control_characters_are_escaped():
    """Nothing that a terminal obeys is left, and all that people write."""
    assert escape("\x1b]52;c;cm0=\x07") == r"\x1b]52;c;cm0=\x07"
    controls = [chr(n) for n in range(0x110000) if unicodedata.category(chr(n)) in ("Cc", "Cs", "Zl", "Zp")]
    assert all(escape(char).isascii() for char in controls if char not in "\n\t")
    for text in ("a b\tc\nd", "道可道 👩🏽‍🚀 e\u0301 שָׁלוֹם \ufeff", "\\"):
        assert escape(text) == text


def test_what_is_logged_is_escaped():
    record = logging.LogRecord("x", logging.INFO, "", 0, "the text %s", ("\x1b[2J",), None)
    assert EscapingFormatter().format(record) == r"the text \x1b[2J"


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("no such text"), 2, "no such text"),
        (NonFiniteError("the loss is nan"), 1, "the loss is nan"),
        (MemoryError(), 1, "out of memory"),
        (RuntimeError("Early stopping conditioned on metric `val_loss` which is not available."), 2, "val_loss"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 1, "out of memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), 1, "out of memory"),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), 1, "install a PyTorch"),
        (RuntimeError("The NVIDIA driver on your system is too old (found version 1)"), 1, "install a PyTorch"),
        (OSError(errno.ENOSPC, "No space left on device", "a/last.ckpt"), 2, "No space left on device: a/last.ckpt"),
    ],
)
def test_what_is_explained(error, status, message, capsys):
    def fails():
        raise error

    assert errors.run(fails) == status
    assert message in errors.in_words(error)


def test_a_bug_has_a_traceback(caplog):
    assert errors.run(lambda: {}["a bug"]) == 1
    assert "unexpected KeyError: 'a bug'" in caplog.text
    assert "Traceback" in caplog.text


def test_ctrl_c():
    def interrupted():
        raise KeyboardInterrupt

    assert errors.run(interrupted) == 130


def test_a_stop_ends_the_process_with_its_code():
    """No handler of errors swallows it."""
    stopped = Stopped(143, step=7, saved=True)
    assert (stopped.code, stopped.step) == (143, 7)
    assert not isinstance(stopped, Exception)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.n_layr=3"], "Key 'n_layr' not in 'GPTConfig'; did you mean model.n_layer?"),
        (["callbacks.text_samples.lenght=3"], "did you mean callbacks.text_samples.length?"),
        (["n_layer=3"], "Key 'n_layer' not in 'TrainConfig'; did you mean model.n_layer?"),
        (["sede=3"], "Key 'sede' not in 'TrainConfig'; did you mean seed?"),
        (["data=README.md"], "Could not find 'data/README.md'; did you mean data=file data.path=README.md?"),
        (["optimizer.lr=1e-3,"], "cannot read optimizer.lr=1e-3,: it takes key=value, special characters in quotes: "),
        (["trainer.max_steps"], "cannot read trainer.max_steps: it takes key=value"),
        (["model=gtp"], "Could not find 'model/gtp'; did you mean model=gpt?"),
        (["optimizer=zzz"], "Could not find 'optimizer/zzz' (there are adamw, "),
        (["experiment=cpu", "model=bigram"], "raised while composing config: Key 'n_layer' not in 'BigramConfig'"),
        (["model.n_layer=two"], "Value 'two' of type 'str' could not be converted to Integer"),
    ],
)
def test_what_hydra_refuses(overrides, message, monkeypatch):
    """With its cause, and what may have been meant."""
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError) as error, hydra_errors():
        composed(*overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_backend_of_matplotlib_that_is_not_here(tiny_run, tmp_path):
    """As `!python train.py` in a notebook inherits it; and in Python itself."""
    done = run_script("sample.py", "--ckpt", str(tiny_run), "--max-new-tokens=3", env={"MPLBACKEND": "nosuchbackend"})
    assert done.returncode == 0, done.stderr
    code = "import os; os.environ['MPLBACKEND'] = 'nosuchbackend'; import chargpt; chargpt.CharLM"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_job_logging_that_is_switched_off(tiny, tmp_path):
    done = run_script("train.py", *tiny, "hydra/job_logging=disabled", f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr


def test_hydra_may_change_the_directory(tiny, text_file, tmp_path):
    """Paths stay those of where the command was typed."""
    (tmp_path / "t.txt").write_text(text_file.read_text(encoding="utf-8"), encoding="utf-8")
    line = [*tiny, "data.path=t.txt", "hydra.job.chdir=true", "trainer.max_steps=3"]
    done = run_script("train.py", *line, "hydra.run.dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run_script("train.py", "-m", *line, "seed=1,2", "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_link_to_the_script(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "train.py").symlink_to(ROOT / "train.py")
    command = [sys.executable, "bin/train.py", "--cfg", "job", "run_dir=x"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "n_embd: 384" in done.stdout

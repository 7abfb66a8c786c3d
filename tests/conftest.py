"""What the tests share: a small text, a place of their own for the cache, and a run on that text."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from chargpt.config import register

ROOT = Path(__file__).parents[1]
register()
TINY = [
    "data=file",
    "model.n_layer=2",
    "model.n_head=2",
    "model.n_embd=16",
    "model.block_size=16",
    "data.batch_size=4",
    "trainer.max_steps=6",
    "trainer.val_check_interval=3",
    "trainer.log_every_n_steps=2",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",  # the same on every machine; what chooses it has tests of its own
    "callbacks.text_samples.length=8",
]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Models this small are quickest on one, above all on a machine that is busy with something else."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """No test reads or writes the cache of the person who runs it."""
    kept = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if kept is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = kept


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    """A few kilobytes of English with its own alphabet, line breaks included."""
    file = tmp_path_factory.mktemp("text") / "verse.txt"
    lines = [f"{n} green bottles hanging on the wall, and {n * 7 % 13} fell.\n" for n in range(100)]
    file.write_text("".join(lines), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def tiny(text_file) -> list[str]:
    """Overrides that make any configuration train for a moment on the small text."""
    return [*TINY, f"data.path={text_file}"]


def composed(*overrides: str) -> DictConfig:
    """The configuration that `python train.py OVERRIDES` would run with."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", overrides=list(overrides))


@pytest.fixture(scope="session")
def tiny_run(tiny, tmp_path_factory) -> Path:
    """The folder of a finished run."""
    from train import train

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    train(composed(*tiny, f"run_dir={folder}"))
    return folder


def run_script(script: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    """Run train.py or sample.py as a person would, in a process of its own; output as text."""
    options = {"cwd": ROOT, "timeout": 120, "input": "", "encoding": "utf-8"} | options
    environment = os.environ | {"PYTHONWARNINGS": "default", "OMP_NUM_THREADS": "1"} | options.pop("env", {})
    command = [sys.executable, str(ROOT / script), *arguments]
    return subprocess.run(command, capture_output=True, env=environment, **options)

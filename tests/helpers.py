"""For the tests: compose a configuration, run the scripts, read the files of a run; the lecture's attention."""

import contextlib
import io
import itertools
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import sample
from chargpt import errors
from chargpt.run import config
from chargpt.run.resume import load_state, replayed
from train import command as train_command
from train import train

ROOT = Path(__file__).parents[1]

# Overrides that make any configuration train for half a second; the fixture `tiny` adds the text.
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
    "trainer.precision=32-true",  # the same on every machine
    "callbacks.text_samples.length=8",
    "callbacks.attention_maps=null",  # tests/callbacks/test_look.py draws
    "callbacks.surprise=null",
]
# 12 steps, validation every 4, a save every 3
STEPS = [
    "trainer.max_steps=12",
    "trainer.val_check_interval=4",
    "trainer.log_every_n_steps=1",
    "callbacks.last_checkpoint.every_n_steps=3",
]
# The same in half the time
QUIET = [*STEPS, "callbacks.text_samples=null", "callbacks.losses=null"]

# The lecture's model, and the options that change its output
OPTIONS: list[dict[str, Any]] = [
    {},
    {"positions": "rotary"},
    {"token_shift": True},
    {"positions": "rotary", "token_shift": True},
]


def composed(*overrides: str) -> DictConfig:
    """The configuration that `python train.py OVERRIDES` would run with."""
    return config.composed(list(overrides))


def signal_at(*steps: int, **options: object) -> list[str]:
    """Overrides for a run that sends itself a signal in these optimizer steps: SIGTERM, unless `signum` is given."""
    harm = {"_target_": "faults.SignalAt", "steps": list(steps)} | options
    return [f"+callbacks.stop.{key}={value}" for key, value in harm.items()]


def start(folder: Path, *overrides: str) -> float:
    """Train in this process, with the overrides stored as train.py does."""
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)), encoding="utf-8")
    return train(composed(*overrides, f"run_dir={folder}")).best_loss


def interrupt(folder: Path, *overrides: str) -> None:
    """The same, of a run that a signal ends."""
    with pytest.raises(errors.Stopped):
        start(folder, *overrides)


def resume(folder: Path, *overrides: str) -> float:
    """Resume a run as `python train.py resume=FOLDER OVERRIDES` does, in this process."""
    stored = [*replayed(folder, overrides), *overrides]
    best = train(resumed(folder, *overrides), load_state(folder)).best_loss
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(stored), encoding="utf-8")
    return best


def resumed(folder: Path, *overrides: str) -> DictConfig:
    """The configuration with which `python train.py resume=FOLDER OVERRIDES` would resume."""
    return composed(*replayed(folder, overrides), *overrides, f"run_dir={folder}", f"resume='{folder}'")


def state(folder: Path) -> dict[str, Any]:
    """The contents of a run's last checkpoint."""
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def events(folder: Path) -> EventAccumulator:
    reader = EventAccumulator(str(folder))
    reader.Reload()
    return reader


def texts(folder: Path, tag: str) -> list[tuple[int, str]]:
    """The steps and texts under a tag in TensorBoard."""
    found = events(folder).Tensors(f"{tag}/text_summary")
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in found]


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The steps and values of all curves except the speed."""
    reader = events(folder)
    tags = [tag for tag in reader.Tags()["scalars"] if tag != "chars_per_second"]
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in tags}


def assert_same(a: Any, b: Any, path: str = "") -> None:
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for n, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}[{n}]")
    else:
        assert a == b, path


def assert_same_end(one: Path, other: Path) -> None:
    """Bitwise, in the last checkpoints of two runs: weights, optimizer, random states of all ranks."""
    a, b = state(one), state(other)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "random_states", "global_step", "epoch"):
        assert_same(a[key], b[key], key)


def bigram(file: Path, characters: str | None, order: Sequence[str | int] = "") -> Path:
    """Write a checkpoint of a bigram: each character is followed by the next one in `order`, or all are as likely.
    None stands for bytes."""
    vocabulary: Any = range(256) if characters is None else characters
    weights = torch.zeros(len(vocabulary), len(vocabulary))
    for each, following in itertools.pairwise(order):
        weights[vocabulary.index(each), vocabulary.index(following)] = 100
    settings = {"characters": characters, "model": {"name": "bigram"}}
    contents = {"hyper_parameters": settings, "state_dict": {"net.token_embedding_table.weight": weights}}
    torch.save(contents, file)
    return file


def random_qkv(T: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Queries, keys and values of 5 sequences and 3 heads, (3, 5, 3, T, 8), laid out as the model does."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(5, T, 3, 3, 8, generator=generator, dtype=torch.float64)
    return qkv.permute(2, 0, 3, 1, 4).to(dtype).requires_grad_()


def plain_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """The lecture's lines, with the dropout mask (0 or the scale) as an argument; queries are the last characters."""
    T, S = q.shape[-2], k.shape[-2]
    wei = q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5
    wei = wei.masked_fill(torch.ones(T, S).tril(S - T) == 0, float("-inf")).softmax(-1)
    return (wei if mask is None else wei * mask) @ v


def run_script(
    script: str, *arguments: str, status: int | None = 0, cwd: Path = ROOT, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    """Run train.py or sample.py in this process, as if it had been started in that folder; output as text. It ends with
    that status, or any if it is None. (A new process takes seconds: `run_fresh` is for streams, signals and the
    environment.)"""
    command = train_command if script == "train.py" else sample.main
    out, err, root = io.StringIO(), io.StringIO(), logging.getLogger()
    before = torch.get_num_threads(), root.handlers[:], root.level
    out.reconfigure = err.reconfigure = lambda **_: None  # type: ignore[attr-defined]
    GlobalHydra.instance().clear()
    root.handlers.clear()  # pytest's, with which logging does not use its last resort
    logging.getLogger("chargpt.errors").handlers.clear()  # conftest's
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.chdir(cwd),
        mock.patch.dict(os.environ, env or {}),
        mock.patch.object(sys, "argv", [str(ROOT / script), *arguments]),
    ):
        try:
            found = errors.run(command) if command is train_command else command(list(arguments))
        except SystemExit as end:
            if isinstance(end.code, str):
                err.write(f"{end.code}\n")
            found = 1 if isinstance(end.code, str) else end.code or 0
    torch.set_num_threads(before[0])
    torch.use_deterministic_algorithms(False)
    GlobalHydra.instance().clear()  # Hydra's state of a process
    HydraConfig.instance().cfg = None
    for handler in root.handlers:
        handler.close()
    root.handlers[:], root.level = before[1:]
    logging.getLogger("chargpt.errors").addHandler(logging.lastResort)
    logging.disable(logging.NOTSET)
    for logger in root.manager.loggerDict.values():
        logger.disabled = False  # type: ignore[union-attr]  # by hydra/job_logging=disabled
    assert status in (None, found), err.getvalue()
    return subprocess.CompletedProcess([script, *arguments], found, out.getvalue(), err.getvalue())


def _process(script: str, arguments: tuple[str, ...], options: dict[str, Any]) -> dict[str, Any]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    environment |= {"PYTHONPATH": str(ROOT / "tests")} | options.pop("env", {})  # where faulty callbacks are found
    file = options.pop("script_folder", ROOT) / script
    return {"args": [sys.executable, str(file), *arguments], "cwd": ROOT, "env": environment} | options


def run_fresh(script: str, *arguments: str, status: int | None = 0, **options: Any) -> subprocess.CompletedProcess:
    """Run a script in a new process, which ends with that status, or any if it is None; output as text."""
    options = {"timeout": 120, "input": "", "encoding": "utf-8", "capture_output": True} | options
    done = subprocess.run(**_process(script, arguments, options))
    assert status in (None, done.returncode), done.stderr
    return done


def launch(*arguments: str, **options: Any) -> subprocess.Popen:
    """Start train.py in a new process, with its messages in the pipe `stderr`."""
    return subprocess.Popen(**_process("train.py", arguments, {"stderr": subprocess.PIPE, "text": True} | options))

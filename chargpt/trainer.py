"""The Lightning Trainer that a configuration asks for."""

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar

from chargpt.config import did_you_mean
from chargpt.errors import UserError

STEP_COUNTS = ("max_steps", "val_check_interval", "log_every_n_steps", "accumulate_grad_batches")


def build_callbacks(configs: dict[str, Any]) -> list[Callback]:
    """The callbacks of `conf/callbacks`; null ones are left out.

    Raises:
        UserError: a callback cannot be made as described.
    """
    callbacks = []
    for name, config in configs.items():
        if config:
            try:
                callbacks.append(instantiate(config))
            except InstantiationException as error:
                raise UserError(f"callbacks.{name}: {_cause(error)}") from error
    return callbacks


def build_trainer(config: dict[str, Any], callbacks: Iterable[Callback]) -> Trainer:
    """A Trainer from a mapping of its arguments, in which `precision` may be `auto` and every count of steps is one of
    optimizer steps (Lightning counts batches up to the next validation).

    Raises:
        UserError: an argument is unknown or out of range.
    """
    known = {name for name in inspect.signature(Trainer).parameters if name != "callbacks"}
    for name in config:
        if name != "_target_" and name not in known:
            hint = did_you_mean(name, known, "trainer.")
            raise UserError(f"trainer.{name} is not an argument of lightning.pytorch.Trainer{hint}")
    for name in STEP_COUNTS:
        if not isinstance(config[name], int) or isinstance(config[name], bool) or config[name] < 1:
            raise UserError(f"trainer.{name} must be a whole number of steps, at least 1; got {config[name]}")
    if (config["gradient_clip_val"] or 0) < 0:
        raise UserError(f"trainer.gradient_clip_val must be at least 0, or null; got {config['gradient_clip_val']}")

    arguments = dict(config)
    if not arguments.get("fast_dev_run"):
        arguments["val_check_interval"] *= arguments["accumulate_grad_batches"]
        arguments["check_val_every_n_epoch"] = None
    if arguments["precision"] == "auto":
        arguments["precision"] = best_precision(arguments.get("accelerator", "auto"))
    if arguments.get("enable_progress_bar") is False:
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    if arguments.get("enable_checkpointing") is False:
        callbacks = [callback for callback in callbacks if not isinstance(callback, Checkpoint)]
    try:
        return instantiate(arguments, callbacks=list(callbacks))
    except InstantiationException as error:
        raise UserError(f"trainer: {_cause(error)}") from error


def best_precision(accelerator: str) -> str:
    """`bf16-mixed` where the hardware multiplies bf16 matrices faster than others, otherwise `32-true`.

    That is CUDA with bf16, and x86 with AMX or AVX512-BF16 (measured on a Zen 5 without AMX: a training step of the
    default model takes a third of the time).

    Args:
        accelerator: as the Trainer takes it.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    elif accelerator == "cpu" or (accelerator == "auto" and not torch.backends.mps.is_available()):
        capabilities = torch.cpu.get_capabilities()
        bf16 = capabilities.get("amx_bf16", False) or capabilities.get("avx512_bf16", False)
    else:
        bf16 = False
    return "bf16-mixed" if bf16 else "32-true"


def _cause(error: Exception) -> str:
    """The first line of what went wrong, without Hydra's own words around it."""
    return str(error.__cause__ or error).strip().splitlines()[0]

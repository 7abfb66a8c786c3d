"""From a configuration to all that a run is made of: the text, the model, the callbacks and Lightning's Trainer."""

import inspect
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from hydra.utils import get_class
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint, ProgressBar

from chargpt.data import CharDataModule
from chargpt.errors import UserError, did_you_mean, first_line
from chargpt.kernels.choice import best_precision
from chargpt.kernels.compiling import compile_model
from chargpt.module import CharLM
from chargpt.run.callbacks.record import RunRecord
from chargpt.run.config import Settings
from chargpt.run.resume import Resumption, check_resumption
from chargpt.run.sweep import in_sweep

STEP_COUNTS = ("max_steps", "val_check_interval", "log_every_n_steps", "accumulate_grad_batches")
TRAINER_ARGUMENTS = frozenset(inspect.signature(Trainer).parameters) - {"callbacks"}


@dataclass
class Run:
    """What a run is made of, ready to be fitted."""

    settings: Settings
    data: CharDataModule
    module: CharLM
    trainer: Trainer
    precision: str  # which one and why, in words, if there is something to say
    compiled: bool

    def describe(self) -> str:
        """The text, the model and how it is computed, in a line each."""
        corpus, trainer = self.data.corpus, self.trainer
        parameters = sum(parameter.numel() for parameter in self.module.net.parameters())
        return (
            f"Text: {corpus.name}, {len(corpus.ids):,} characters, {corpus.tokenizer.vocab_size:,} of them distinct\n"
            f"Model: {self.settings.model.name}, {parameters:,} parameters, on {trainer.strategy.root_device}"
            f" in {trainer.precision}{self.precision}{', compiled' if self.compiled else ''}"
        )


def build(settings: Settings, resumption: Resumption | None = None) -> Run:
    """Make all that a run needs. The precision in `settings`, if it was `auto`, is then the one chosen.

    Raises:
        UserError: the settings or the text cannot be used, or do not fit what the run goes on from.
    """
    seed_everything(settings.seed, workers=True, verbose=False)
    data = CharDataModule(settings.data)
    data.setup()
    corpus = data.corpus
    text = {"name": corpus.name, "sha256": corpus.sha256}
    if resumption is not None:
        check_resumption(resumption, settings, corpus)
    module = CharLM(settings.model, settings.optimizer, corpus.tokenizer.characters, text)
    precision = settle_precision(settings.trainer, resumption)
    callbacks = [RunRecord(settings), *build_callbacks(settings.callbacks)]
    # Each rank's batches are made for it already.
    defaults: dict[str, Any] = {"default_root_dir": settings.run_dir, "use_distributed_sampler": False}
    arguments = defaults | settings.trainer
    if resumption is not None and _name_of(arguments.get("logger")) == "TensorBoardLogger":
        # Curves go on where the saved state stands.
        arguments["logger"] = arguments["logger"] | {"purge_step": resumption.step + 1}
    trainer = build_trainer(arguments, callbacks)
    if trainer.world_size > 1 and in_sweep():
        raise UserError("a sweep trains each job on one device: its other processes would each sweep again")
    compiled = compile_model(module.net, settings.compile, trainer.strategy.root_device, trainer.max_steps)
    return Run(settings, data, module, trainer, precision, compiled)


def settle_precision(arguments: dict[str, Any], resumption: Resumption | None) -> str:
    """Put the precision that fits this machine in place of `auto`; a run that goes on keeps its own.

    Returns:
        Why, for the log.

    Raises:
        UserError: the run that goes on has one that this machine lacks.
    """
    device = device_type(str(arguments.get("accelerator", "auto")))
    best, given = best_precision(device), arguments.get("precision")
    if given == "auto":
        arguments["precision"] = best.name
        return f" ({best.why})"
    if resumption is None or given == best.name:
        return ""
    if given == "16-mixed" and device == "cpu":
        raise UserError(
            f"the run began with trainer.precision={given}, which a CPU does not have;"
            f" trainer.precision={best.name} goes on in another"
        )
    return f" (as before; this machine by itself would take {best.name}: {best.why})"


def device_type(accelerator: str) -> str:
    """The type of device that Lightning takes for its `accelerator` argument."""
    if accelerator not in ("auto", "gpu"):
        return accelerator
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def build_callbacks(configs: dict[str, Any]) -> list[Callback]:
    """The callbacks of `conf/callbacks`; null ones are left out.

    Raises:
        UserError: a callback cannot be made as described.
    """
    return [_made(f"callbacks.{name}", config) for name, config in configs.items() if config]


def build_trainer(config: dict[str, Any], callbacks: Iterable[Callback]) -> Trainer:
    """A Trainer from a mapping of its arguments, in which every count of steps is one of optimizer steps (Lightning
    counts batches up to the next validation), and a mapping with a `_target_` stands for the object to make.

    Raises:
        UserError: an argument is unknown or out of range.
    """
    for name in config:
        if name not in TRAINER_ARGUMENTS:
            hint = did_you_mean(name, TRAINER_ARGUMENTS, "trainer.")
            raise UserError(f"trainer.{name} is not an argument of lightning.pytorch.Trainer{hint}")
    for name in STEP_COUNTS:
        count = config.get(name)
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise UserError(f"trainer.{name} must be a whole number of steps, at least 1; got {count}")
    clip = config.get("gradient_clip_val") or 0
    if not isinstance(clip, int | float) or clip < 0:
        raise UserError(f"trainer.gradient_clip_val must be at least 0, or null; got {clip}")

    arguments = {name: _made(f"trainer.{name}", value) for name, value in config.items()}
    if not arguments.get("fast_dev_run"):
        arguments["val_check_interval"] *= arguments["accumulate_grad_batches"]
        arguments["check_val_every_n_epoch"] = None
    if arguments.get("enable_progress_bar") is False:
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    if arguments.get("enable_checkpointing") is False:
        callbacks = [callback for callback in callbacks if not isinstance(callback, Checkpoint)]
    try:
        return Trainer(**arguments, callbacks=list(callbacks))
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"trainer: {first_line(error)}") from error


def _made(name: str, config: Any) -> Any:
    """The object that a mapping with a `_target_` stands for, those inside it included; anything else as it is.

    Hydra's `instantiate` would resolve interpolations again that have been resolved once: a string of somebody else's
    could then become code that runs.

    Raises:
        UserError: there is no such class, or these are not its arguments.
    """
    if isinstance(config, list):
        return [_made(name, each) for each in config]
    if not isinstance(config, dict):
        return config
    made = {key: _made(f"{name}.{key}", value) for key, value in config.items()}
    if "_target_" not in made:
        return made
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # what it would log is raised as well
    try:
        return get_class(made.pop("_target_"))(**made)
    except Exception as error:  # any class may be named, and each fails in a way of its own
        raise UserError(f"{name}: {first_line(error)}") from error


def _name_of(config: Any) -> str | None:
    """The name of the class that a configuration stands for."""
    return str(config["_target_"]).rpartition(".")[2] if isinstance(config, dict) and "_target_" in config else None

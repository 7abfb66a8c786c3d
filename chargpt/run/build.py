"""From a configuration to all that a run is made of: the text, the model, the callbacks and Lightning's Trainer."""

import inspect
import logging
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from hydra.utils import get_class
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint, GradientAccumulationScheduler, ProgressBar

from chargpt.batches import CALLED
from chargpt.checkpoint import Scoring
from chargpt.corpus import Corpus
from chargpt.data import CharDataModule
from chargpt.errors import UserError, did_you_mean, first_line
from chargpt.kernels.choice import best_precision
from chargpt.kernels.compiling import compile_model
from chargpt.model import build_skeleton
from chargpt.module import CharLM
from chargpt.run.callbacks.averaging import averages_in
from chargpt.run.callbacks.record import RunRecord
from chargpt.run.callbacks.restoring import Restoring
from chargpt.run.checkpoints import StateInMemory
from chargpt.run.config import Settings
from chargpt.run.initial import Initial, copy_weights, extended
from chargpt.run.job import in_sweep
from chargpt.run.loggers import continued
from chargpt.run.resume import Resumption, check_resumption
from chargpt.run.sweep import ONE_DEVICE
from chargpt.settings import MOST_STEPS, arguments_of, check_types
from chargpt.tokenizer import tokenizer_of

STEP_COUNTS = ("max_steps", "val_check_interval", "log_every_n_steps", "accumulate_grad_batches")
EPOCH_COUNTS = ("max_epochs", "min_epochs", "overfit_batches", "check_val_every_n_epoch")
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
    restoring: Restoring

    def describe(self) -> str:
        """The text, the model and how it is computed, in a line each."""
        trainer = self.trainer
        parameters = sum(parameter.numel() for parameter in self.module.net.parameters())
        lines = [f"Text: {_described(self.data.corpus)}{self._shares()}"]
        seen = {self.data.corpus.sha256: "training"}
        for part, own in self.data.own.items():
            same = f", the same as the {seen[own.sha256]} text" if own.sha256 in seen else ""
            new = len(set(own.tokenizer.characters or "") - set(self.data.corpus.tokenizer.characters or ""))
            unseen = f", {new:,} of which the training text lacks" if new else ""
            lines.append(f"{CALLED[part].capitalize()} text: {_described(own)}{unseen}{same}")
            seen.setdefault(own.sha256, CALLED[part])
        return "\n".join(lines) + (
            "\n"
            f"Model: {self.settings.model.name}, {parameters:,} parameters, on {trainer.strategy.root_device}"
            f" in {trainer.precision}{self.precision}{', compiled' if self.compiled else ''}"
        )

    def _shares(self) -> str:
        """How much of the text each part has, where it is cut into several."""
        parts = {"train": self.data.train_ids, "val": self.data.val_ids, "test": self.data.test_ids}
        cut = {part: len(ids) for part, ids in parts.items() if ids is not None and part not in self.data.own}
        told = ", ".join(f"{CALLED[part]} {size:,}" for part, size in cut.items())
        return f" ({told})" if len(cut) > 1 else ""


def _described(corpus: Corpus) -> str:
    distinct = "" if corpus.tokenizer.characters is None else f", {corpus.tokenizer.vocab_size:,} of them distinct"
    return f"{corpus.name}, {len(corpus.ids):,} {corpus.tokenizer.unit}s{distinct}"


def build(settings: Settings, resumption: Resumption | None = None, initial: Initial | None = None) -> Run:
    """Make all that a run needs. The precision in `settings`, if it was `auto`, is then the one chosen.

    Args:
        resumption: the state that it goes on from.
        initial: the model that it starts from.

    Raises:
        UserError: the settings or the text cannot be used, or do not fit what the run goes on from.
    """
    seed_everything(settings.seed, verbose=False)
    if resumption is not None:
        check_resumption(resumption, settings)
    data = CharDataModule(settings.data, resumption.text if resumption else None)
    data.setup()
    tokenizer = data.tokenizer
    if initial is not None:
        tokenizer = extended(initial, tokenizer)
    elif resumption is not None:
        tokenizer = tokenizer_of(resumption.characters)
    data.use(tokenizer)
    callbacks = build_callbacks(settings.callbacks)
    precision = settle_precision(settings.trainer, resumption)
    restoring = Restoring(resumption)
    trainer = build_trainer(_arguments(settings, resumption), [restoring, RunRecord(settings), *callbacks])
    if trainer.world_size > 1 and in_sweep():
        raise UserError(ONE_DEVICE)
    scoring = Scoring(settings.data.split, settings.data.batch_size, str(trainer.precision))
    module = CharLM(settings.model, settings.optimizer, tokenizer.characters, data.identities, asdict(scoring))
    if initial is not None:
        copy_weights(initial, module.net, tokenizer)
    compiled = compile_model(module.net, settings.compile, trainer.strategy.root_device, trainer.max_steps)
    return Run(settings, data, module, trainer, precision, compiled, restoring)


def _arguments(settings: Settings, resumption: Resumption | None) -> dict[str, Any]:
    """The Trainer's arguments: those of the settings, and what keeps it in the run's folder and lets it go on."""
    given = settings.trainer
    arguments = {"use_distributed_sampler": False} | given  # each rank's batches are made for it already
    arguments["default_root_dir"] = given.get("default_root_dir") or settings.run_dir
    arguments["logger"] = continued(given.get("logger"), settings.run_dir, resumption.step + 1 if resumption else 0)
    if resumption is not None:
        plugins = _made("trainer.plugins", given.get("plugins") or [])
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):  # one of the user's own reads for itself
            arguments["plugins"] = [*plugins, StateInMemory(resumption.state)]
    return arguments


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
    """The type of device that Lightning takes for its `accelerator` argument.

    Raises:
        UserError: this machine has no such device.
    """
    if accelerator in ("cuda", "mps") and not getattr(torch, accelerator).is_available():
        raise UserError(f"trainer.accelerator={accelerator} is not to be had on this machine")
    if accelerator not in ("auto", "gpu"):
        return accelerator
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def build_callbacks(configs: dict[str, Any]) -> list[Callback]:
    """The callbacks of `conf/callbacks`; null ones are left out.

    Raises:
        UserError: a callback cannot be made as described, or two of them exclude each other.
    """
    callbacks = {f"callbacks.{name}": config for name, config in configs.items() if config is not None}
    made = {name: _made(name, config) for name, config in callbacks.items()}
    for name, callback in made.items():
        if not isinstance(callback, Callback):
            raise UserError(f"{name} is no callback of Lightning's: it needs {name}._target_=..., or is null")
        if isinstance(callback, GradientAccumulationScheduler):
            raise UserError(f"{name} counts epochs, and random blocks have none: trainer.accumulate_grad_batches=...")
    averages = [name for name, callback in made.items() if averages_in([callback])]
    if len(averages) > 1:
        raise UserError(f"two averages of the weights exclude each other: {', '.join(averages)}")
    return list(made.values())


def build_trainer(config: dict[str, Any], callbacks: Iterable[Callback]) -> Trainer:
    """A Trainer from a mapping of its arguments, in which every count of steps is one of optimizer steps (Lightning
    counts batches up to the next validation), and a mapping with a `_target_` stands for the object to make.

    Raises:
        UserError: an argument is unknown or out of range, or a strategy that cannot be had here.
    """
    for name in config:
        if name not in TRAINER_ARGUMENTS:
            hint = did_you_mean(name, TRAINER_ARGUMENTS, "trainer.")
            raise UserError(f"trainer.{name} is not an argument of lightning.pytorch.Trainer{hint}")
    for name in STEP_COUNTS:
        count = config.get(name)
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count < MOST_STEPS:
            raise UserError(f"trainer.{name} must be a whole number of steps, at least 1 and below 2**53; got {count}")
    for name in EPOCH_COUNTS:
        if config.get(name) and not (name == "max_epochs" and config.get("limit_train_batches")):
            raise UserError(
                f"trainer.{name} counts epochs, and random blocks have none: trainer.max_steps=... counts steps"
            )
    share = config.get("limit_test_batches")
    if share is not None and (type(share) is not float or share != 1):
        raise UserError("trainer.limit_test_batches would score a part of the test text only: leave it out")
    batches = config.get("limit_train_batches")
    if batches is not None and (type(batches) is not int or batches < 1):
        raise UserError(f"trainer.limit_train_batches must be a number of batches, at least 1, or null; got {batches}")
    arguments = {name: _made(f"trainer.{name}", value) for name, value in config.items()}
    check_types("trainer", arguments_of(Trainer), arguments)
    _check_strategy(arguments.get("strategy"))
    if not (arguments.get("gradient_clip_val") or 0) >= 0:
        raise UserError(f"trainer.gradient_clip_val must be at least 0, or null; got {arguments['gradient_clip_val']}")
    if not arguments.get("fast_dev_run"):
        arguments["val_check_interval"] *= arguments["accumulate_grad_batches"]
        arguments["check_val_every_n_epoch"] = None
    if arguments.get("enable_progress_bar") is False:
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    if arguments.get("enable_checkpointing") is False:
        callbacks = [callback for callback in callbacks if not isinstance(callback, Checkpoint)]
    try:
        return Trainer(**arguments, callbacks=list(callbacks))
    except Exception as error:  # whatever is wrong with them, they are what was asked for
        raise UserError(f"trainer: {first_line(error)}") from error


def _check_strategy(strategy: Any) -> None:
    """Refuse what no run could come to its end with.

    Raises:
        UserError: the strategy shards the model, or starts processes in another way than by the command line.
    """
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    if re.search("fsdp|deepspeed|model_?parallel", name.lower()):
        raise UserError(
            f"trainer.strategy={name} shards the model, and is not supported: the first process alone writes samples"
            " and pictures, for which it would wait for the shards of the others; trainer.strategy=ddp has it whole on"
            " each device"
        )
    if re.search("spawn|fork|notebook", name.lower()):
        raise UserError(f"trainer.strategy={name} is for notebooks; the command line takes trainer.strategy=ddp")


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
        kind = get_class(made.pop("_target_"))
    except Exception as error:  # any name may be given, and each may fail in a way of its own
        raise UserError(f"{name}: {first_line(error)}") from error
    check_types(name, arguments_of(kind), made)
    try:
        return kind(**made)
    except Exception as error:
        raise UserError(f"{name}: {first_line(error)}") from error

"""From the settings of a run to its parts: the text, the model, the callbacks and Lightning's Trainer; and how a run
starts from trained weights (`init_from=`), for another text."""

import csv
import inspect
import logging
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint as CheckpointCallback
from lightning.pytorch.loggers import CSVLogger, Logger
from omegaconf import DictConfig, OmegaConf

from chargpt.callbacks.records import RunRecord
from chargpt.callbacks.saving import AtomicFiles
from chargpt.checkpoint import Checkpoint, EvalSettings, find_checkpoint, read_checkpoint
from chargpt.data import CharDataModule
from chargpt.errors import UserError, did_you_mean, first_line
from chargpt.kernels.choice import best_precision, compile_model
from chargpt.model import Model
from chargpt.module import CharLM
from chargpt.run.config import Settings
from chargpt.run.resume import Resumption, check_same
from chargpt.run.state import TrainingState
from chargpt.tokenizer import CharTokenizer, Tokenizer

log = logging.getLogger(__name__)

STEP_COUNTS = ("max_steps", "val_check_interval", "log_every_n_steps", "accumulate_grad_batches")
EPOCH_COUNTS = ("max_epochs", "min_epochs", "overfit_batches", "check_val_every_n_epoch")
ARGUMENTS = frozenset(inspect.signature(Trainer).parameters) - {"callbacks"}
STRATEGIES = "fsdp|deepspeed|model_?parallel|spawn|fork|notebook"  # shard the model, or are for notebooks
MAY_DIFFER = ("dropout", "zero_init")  # from the model of init_from: they do not change what its weights compute
NO_EPOCHS = "counts epochs, but random blocks do not end"
NO_AVERAGE = "let the learning rate fall to 0 instead: optimizer.schedule=linear optimizer.min_lr_factor=0"
NOT_SUPPORTED = {  # of Lightning's callbacks
    "GradientAccumulationScheduler": f"{NO_EPOCHS}: use trainer.accumulate_grad_batches=",
    "StochasticWeightAveraging": f"{NO_EPOCHS}: {NO_AVERAGE}",
    "WeightAveraging": f"does not save its average in best.ckpt: {NO_AVERAGE}",
    "ModelPruning": NO_EPOCHS,
}


@dataclass
class Run:
    """All parts of a run, ready to be fitted."""

    settings: Settings
    data: CharDataModule
    module: CharLM
    trainer: Trainer
    precision: str  # the reason for the precision, for the log
    compiled: bool
    state: TrainingState


def build(settings: Settings, resumption: Resumption | None = None, initial: Checkpoint | None = None) -> Run:
    """Build a run: from its first step, from the state to resume from, or from the weights of a trained model."""
    seed_everything(settings.seed, verbose=False)
    if resumption is not None:
        check_same(resumption, settings)
    data = CharDataModule(settings.data, resumption.checkpoint.text if resumption else None)
    data.setup()
    tokenizer = data.tokenizer
    if initial is not None:
        tokenizer = extended(initial, tokenizer)
    elif resumption is not None:
        tokenizer = resumption.checkpoint.tokenizer
    data.use(tokenizer)
    callbacks = build_callbacks(settings.callbacks)
    precision = settle_precision(settings.trainer, resumption)
    state = TrainingState(settings, resumption)
    record = RunRecord(settings, recorded=resumption is not None and resumption.checkpoint.best_loss is not None)
    logger = with_purge_step(settings.trainer.get("logger"), resumption.step + 1 if resumption else 0)
    arguments = settings.trainer | {"logger": logger, "default_root_dir": settings.run_dir}
    if settings.trainer.get("default_root_dir") not in (None, settings.run_dir):
        raise UserError("trainer.default_root_dir is the run's folder: name it by hydra.run.dir=")
    trainer = build_trainer(arguments, [state, record, *callbacks])
    scoring = EvalSettings(settings.data.split, settings.data.batch_size, str(trainer.precision))
    module = CharLM(settings.model, settings.optimizer, tokenizer.characters, data.identities, asdict(scoring))
    if initial is not None:
        copy_weights(initial, module.net, tokenizer)
    compiled = compile_model(module.net, settings.compile, trainer.strategy.root_device, trainer.max_steps)
    return Run(settings, data, module, trainer, precision, compiled, state)


def settle_precision(arguments: dict[str, Any], resumption: Resumption | None) -> str:
    """Replace `precision=auto` in `arguments`, on resume by the run's own. Returns the reason for it, for the log."""
    device, is_chosen = device_type(str(arguments.get("accelerator", "auto"))), arguments.get("precision") == "auto"
    best = best_precision(device)
    if is_chosen:
        arguments["precision"] = resumption.checkpoint.scoring.precision if resumption else best.name
    given = arguments.get("precision")
    if given == "16-mixed" and device == "cpu":  # Lightning would train in bf16-mixed
        raise UserError(f"a CPU has no trainer.precision=16-mixed; trainer.precision={best.name} is the fastest here")
    return f" ({best.why})" if is_chosen and given == best.name else ""


def device_type(accelerator: str) -> str:
    """The type of device that Lightning takes for its `accelerator` argument."""
    if accelerator in ("auto", "gpu"):
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if accelerator in ("cuda", "mps") and not getattr(torch, accelerator).is_available():
        raise UserError(f"this machine has no trainer.accelerator={accelerator}")
    return accelerator


def build_callbacks(configs: dict[str, Any]) -> list[Callback]:
    """The callbacks of `conf/callbacks`, without those that are null. Lightning's that count epochs are refused, as
    they would do nothing."""
    callbacks = []
    for name, config in configs.items():
        if config is None:
            continue
        callback = instantiated(f"callbacks.{name}", config)
        if not isinstance(callback, Callback):
            raise UserError(f"callbacks.{name} is not a Lightning callback: it needs callbacks.{name}._target_=...")
        for kind in type(callback).__mro__:
            if kind.__name__ in NOT_SUPPORTED:
                raise UserError(f"callbacks.{name}: {type(callback).__name__} {NOT_SUPPORTED[kind.__name__]}")
        for key, value in config.items() if type(callback).__module__.startswith("lightning.") else ():
            if value == "epoch" or ("epoch" in key and isinstance(value, int) and value):
                raise UserError(f"callbacks.{name}.{key}={value} {NO_EPOCHS}")
        callbacks.append(callback)
    return callbacks


def build_trainer(config: dict[str, Any], callbacks: Iterable[Callback]) -> Trainer:
    """A Trainer from its arguments, in which every count of steps is one of optimizer steps (Lightning counts batches
    up to the next validation)."""
    for name in config:
        if name not in ARGUMENTS:
            hint = did_you_mean(name, ARGUMENTS, "trainer.")
            raise UserError(f"trainer.{name} is not an argument of lightning.pytorch.Trainer{hint}")
    for name in (*STEP_COUNTS, *(["min_steps"] if config.get("min_steps") is not None else [])):
        if type(count := config.get(name)) is not int or count < 1:
            raise UserError(f"trainer.{name} must be a whole number of steps, at least 1; got {count}")
    for name in EPOCH_COUNTS:
        if config.get(name):
            raise UserError(f"trainer.{name} {NO_EPOCHS}: use trainer.max_steps=")
    if config.get("num_sanity_val_steps"):
        raise UserError("trainer.num_sanity_val_steps is not supported: trainer.fast_dev_run=true tries everything")
    # With min_steps, Lightning would wait for the end of an epoch.
    arguments = {"min_epochs": 0} | instantiated("trainer", config)
    plugins = arguments.get("plugins") or []
    arguments["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicFiles()]
    if re.search(STRATEGIES, str(strategy := config.get("strategy")).lower()):
        raise UserError(f"trainer.strategy={strategy} is not supported: each process holds all weights; use ddp")
    if arguments.get("fast_dev_run"):
        arguments["enable_checkpointing"] = False  # as Lightning does with its own: the model is of no use
    else:
        arguments["val_check_interval"] *= arguments["accumulate_grad_batches"]
        arguments["check_val_every_n_epoch"] = None
    if arguments.get("enable_checkpointing") is False:
        callbacks = [callback for callback in callbacks if not isinstance(callback, CheckpointCallback)]
    try:
        return Trainer(**arguments, callbacks=list(callbacks))
    except Exception as error:  # whatever Lightning rejects here came from the arguments
        raise UserError(f"trainer: {first_line(error)}") from error


def instantiated(name: str, config: Any) -> Any:
    """Instantiate a configuration by Hydra: each mapping with a `_target_` becomes the object that it describes."""
    try:
        return instantiate(config, _convert_="all")
    except InstantiationException as error:
        raise UserError(f"{name}: {first_line(error.__cause__ or error)}") from error


def with_purge_step(logger: Any, first_step: int) -> Any:
    """The configuration of one or several loggers, with which TensorBoard drops earlier points from `first_step` on."""
    if isinstance(logger, list):
        return [with_purge_step(each, first_step) for each in logger]
    if isinstance(logger, dict) and str(logger.get("_target_")).endswith(".TensorBoardLogger"):
        return logger | {"purge_step": first_step}
    return logger


def keep_rows(loggers: Iterable[Logger], step: int) -> None:
    """Keep the rows of CSV files up to a step: Lightning's CSVLogger would start the file again."""
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            file = Path(logger.log_dir, "metrics.csv")
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
            rows = [row for row in csv.DictReader(lines, restval="") if row.get("step", "").isdecimal()]
            rows = [row for row in rows if int(row["step"]) <= step]
            logger.experiment.metrics = [{key: value for key, value in row.items() if key and value} for row in rows]
            logger.save()


def begin_from(cfg: DictConfig, resumption: Resumption | None = None) -> tuple[DictConfig, Checkpoint | None]:
    """The configuration with the architecture of the model that `init_from` names, and that model. A run that resumes
    has both in its checkpoint."""
    if cfg.init_from is None:
        return cfg, None
    initial = None
    if resumption is not None:
        settings = asdict(resumption.checkpoint.model.config)
    else:
        initial = read_checkpoint(find_checkpoint(cfg.init_from))
        settings = _architecture(cfg, asdict(initial.model.config))
    cfg = cfg.copy()
    OmegaConf.update(cfg, "model", settings, merge=False, force_add=True)
    return cfg, initial


def _architecture(cfg: DictConfig, trained: dict[str, Any]) -> dict[str, Any]:
    """The settings of a trained model, with the typed ones that may differ; others must not."""
    task = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    typed = {each.partition("=")[0].lstrip("+") for each in task}
    chosen = {key: value for key, value in cfg.model.items() if key == "name" or f"model.{key}" in typed}
    for key, value in chosen.items():
        if key not in MAY_DIFFER and value != trained.get(key):
            option = "model=" if key == "name" else f"model.{key}="
            raise UserError(f"init_from={cfg.init_from} has weights for {option}{trained.get(key)}, not for {value}")
    return trained | chosen


def extended(initial: Checkpoint, text: Tokenizer) -> Tokenizer:
    """The vocabulary of a model, extended by the characters of a text that are new to it."""
    if initial.tokenizer.characters is None or text.characters is None:
        if initial.tokenizer.characters != text.characters:
            kind = initial.tokenizer.kind
            raise UserError(f"init_from= names a model of {kind}: add data.tokenizer={kind}")
        return text
    new = "".join(sorted(set(text.characters) - set(initial.tokenizer.characters)))
    if new:
        log.info(f"{len(new)} characters are new to the model and start untrained: {new[:200]!r}")
    return CharTokenizer("".join(sorted(set(initial.tokenizer.characters) | set(new))))


def copy_weights(initial: Checkpoint, net: Model, vocabulary: Tokenizer) -> None:
    """Copy the weights into a model of the same architecture. Rows of new characters keep their initial values."""
    rows = torch.tensor(vocabulary.encode(initial.tokenizer.characters or ""))
    before = initial.model.state_dict()
    with torch.no_grad():
        for name, weight in net.state_dict().items():
            old = before[name].to(weight.dtype)
            if old.shape == weight.shape:
                weight.copy_(old)
            elif old.shape[1:] == weight.shape[1:]:
                weight[rows] = old
            else:  # a bigram's table
                weight[rows[:, None], rows] = old

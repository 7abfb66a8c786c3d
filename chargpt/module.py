"""The LightningModule: a model with its loss, its metrics and its optimizer."""

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MinMetric
from torchmetrics.classification import MulticlassAccuracy

from chargpt.batches import IGNORED, Batch
from chargpt.model import MODEL_CONFIGS, ModelConfig, build_model
from chargpt.optim import OPTIMIZER_CONFIGS, OptimizerConfig, lr_factor
from chargpt.settings import read_settings
from chargpt.tokenizer import tokenizer_of

CPU_PART = 4096  # characters


def is_logged(trainer: Trainer, step: int) -> bool:
    """Whether Lightning writes the metrics of an optimizer step, counted from 1, to the logger. On other steps, logging
    would only take time."""
    return step % trainer.log_every_n_steps == 0 or step == trainer.max_steps  # type: ignore[attr-defined]


class _InFP32:
    """Keeps a metric's state in fp32 under bf16-true, where a sum would soon stop growing."""

    def _apply(self, convert: Callable[[Tensor], Tensor], *args: Any) -> Any:
        return super()._apply(lambda state: state.to(convert(state).device), *args)  # type: ignore[misc]


class _Mean(_InFP32, MeanMetric): ...


class _Min(_InFP32, MinMetric): ...


class CharLM(LightningModule):
    """A character-level language model in training.

    Metrics are logged under the number of optimizer steps taken: 1 after the first, where Lightning writes 0. The
    hyper-parameters are plain dicts, strings and numbers, so that a checkpoint loads with `weights_only=True`.

    Args:
        model, optimizer: configurations, or their settings as plain dicts (as a checkpoint holds them).
        characters: the vocabulary, in order of id; None for bytes.
        corpus: the training text's `name` and `sha256`; `val_name` and so on of separate texts for validation or test.
        scoring: a `chargpt.checkpoint.EvalSettings` as a dict, for `chargpt.evaluate`.
    """

    def __init__(
        self,
        model: ModelConfig | dict[str, Any],
        optimizer: OptimizerConfig | dict[str, Any],
        characters: str | None,
        corpus: dict[str, str] | None = None,
        scoring: dict[str, Any] | None = None,
    ):
        super().__init__()
        if isinstance(model, dict):
            model = read_settings("model", MODEL_CONFIGS, model)
        if isinstance(optimizer, dict):
            optimizer = read_settings("optimizer", OPTIMIZER_CONFIGS, optimizer)
        self.optimizer_config = optimizer
        settings: dict[str, Any] = {"model": asdict(model), "optimizer": asdict(optimizer), "characters": characters}
        settings |= {"corpus": corpus or {}, "scoring": scoring or {}}
        self.save_hyperparameters(settings, logger=False)
        self.tokenizer = tokenizer_of(characters)
        self.net = build_model(model, self.tokenizer.vocab_size)
        self.mean_loss = _Mean(nan_strategy=math.nan)  # NaN stays NaN; "disable" would ignore the weight of each batch
        self.accuracy = MulticlassAccuracy(self.tokenizer.vocab_size, average="micro", ignore_index=IGNORED)
        self.best_val_loss = _Min(nan_strategy="ignore")
        self.best_val_loss.persistent(True)  # in the checkpoint, for a resumed run

    def logits(self, inputs: Tensor) -> Tensor:
        """The logits of a batch, (B, T) to (B, T, vocab_size).

        On a CPU, a few sequences at a time, so that the next layer finds its input in the CPU's cache.
        """
        rows = max(1, CPU_PART // inputs.shape[1]) if inputs.device.type == "cpu" else len(inputs)
        return torch.cat([self.net(part) for part in inputs.split(rows)])

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy in nats per id of logits (B, T, vocab_size) against targets (B, T)."""
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)

    def training_loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch."""
        return self.loss(self.logits(inputs), targets)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.training_loss(*batch)
        logged = is_logged(self.trainer, self.global_step + 1)
        if logged or any(isinstance(each, ModelCheckpoint) for each in self.trainer.checkpoint_callbacks):
            self.log("step", float(self.global_step + 1))  # ModelCheckpoint names files by it
        if logged:
            self.log("train/loss", loss.detach(), sync_dist=self.trainer.world_size > 1)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if is_logged(self.trainer, self.global_step + 1):
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            self.log("train/grad_norm", nn.utils.get_total_norm(gradients))  # before clipping
            self.log("lr", optimizer.param_groups[0]["lr"])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        inputs, targets = batch
        logits = self.logits(inputs)
        count = (targets != IGNORED).sum()  # 0 where a rank has padding only, whose mean would be NaN
        self.mean_loss.update(torch.where(count > 0, self.loss(logits, targets), 0.0), weight=count)
        self.accuracy.update(logits.flatten(0, 1), targets.flatten())

    def on_validation_epoch_end(self) -> None:
        loss = self.mean_loss.compute()
        metrics: dict[str, Tensor | float] = {
            "val/loss": loss,  # nats per character, or per byte
            "val/perplexity": loss.exp(),
            f"val/bp{self.tokenizer.unit[0]}": loss / math.log(2),  # bits per character (bpc), or per byte (bpb)
            "val/accuracy": self.accuracy.compute(),
            "step": float(self.global_step),
        }
        self.mean_loss.reset()
        self.accuracy.reset()
        if not self.trainer.sanity_checking:
            self.best_val_loss.update(loss)
            metrics["val/best_loss"] = self.best_val_loss.compute()
        self.log_dict(metrics, sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = self.optimizer_config.build(self.net)
        config, steps = self.optimizer_config, self.trainer.max_steps
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(config, step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

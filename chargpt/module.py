"""The LightningModule: a model with its loss, its metrics and its optimizer."""

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MinMetric
from torchmetrics.classification import MulticlassAccuracy

from chargpt.batches import Batch
from chargpt.model import MODEL_CONFIGS, ModelConfig, build_model
from chargpt.optim import OPTIMIZER_CONFIGS, OptimizerConfig, lr_factor
from chargpt.settings import read_settings
from chargpt.tokenizer import tokenizer_of

CPU_PART = 4096  # characters


def is_logged(trainer: Trainer, step: int) -> bool:
    """Whether Lightning writes the metrics of an optimizer step, counted from 1, to the logger."""
    return step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]  # the Trainer has it, undeclared


class _InSinglePrecision:
    """A metric that stays so where the model is converted to half precision (`bf16-true`), in which a sum soon grows no
    more."""

    def _apply(self, convert: Callable[[Tensor], Tensor], *args: Any) -> Any:
        return super()._apply(lambda state: state.to(convert(state).device), *args)  # type: ignore[misc]


class _Mean(_InSinglePrecision, MeanMetric): ...


class _Min(_InSinglePrecision, MinMetric): ...


class CharLM(LightningModule):
    """A character-level language model in training.

    Everything logged carries the number of optimizer steps taken as its `step`, which Lightning then uses in place of
    its own count from 0.

    Its hyper-parameters are plain dicts, strings and numbers, so that a checkpoint is complete and loads with
    `weights_only=True`; `chargpt.checkpoint.load_checkpoint` reads it without Lightning.

    Args:
        model: the model's configuration, or its settings as a plain dict (as a checkpoint holds them).
        optimizer: the optimizer's, likewise.
        characters: the vocabulary, in order of id; None for bytes.
        corpus: what the model is trained on: its `name`, for people, and the `sha256` of the text; likewise `val_name`
            and so on of texts of their own that validate or test.
        scoring: how it is validated, see `EvalSettings`; kept for `chargpt.evaluate`.

    Raises:
        UserError: a setting is unknown or out of range.
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
            optimizer = read_settings("optimizer", OPTIMIZER_CONFIGS, optimizer, default="adamw")
        self.optimizer_config = optimizer
        settings: dict[str, Any] = {"model": asdict(model), "optimizer": asdict(optimizer), "characters": characters}
        settings |= {"corpus": corpus or {}, "scoring": scoring or {}}
        self.save_hyperparameters(settings, logger=False)
        self.tokenizer = tokenizer_of(characters)
        self.net = build_model(model, self.tokenizer.vocab_size)
        self.mean_loss = _Mean(nan_strategy=math.nan)  # one makes the mean one; "disable" would forget the weights
        self.accuracy = MulticlassAccuracy(self.tokenizer.vocab_size, average="micro")
        self.best_val_loss = _Min(nan_strategy="ignore")
        self.best_val_loss.persistent(True)  # in the checkpoint: the best score so far outlives an interruption

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy in nats per id of logits (B, T, vocab_size) against targets (B, T)."""
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.training_loss(*batch)
        if self.should_log:
            metrics: dict[str, Tensor | float] = {"train/loss": loss.detach(), "step": float(self.global_step + 1)}
            self.log_dict(metrics, sync_dist=self.trainer.world_size > 1)
        return loss

    def training_loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch, inputs and targets (B, T).

        Sequences do not touch one another, so a CPU takes them in parts: what one layer writes is then still in the
        cache when the next one reads it. Other devices take all at once.
        """
        rows = max(1, CPU_PART // inputs.shape[1]) if inputs.device.type == "cpu" else len(inputs)
        return self.loss(torch.cat([self.net(part) for part in inputs.split(rows)]), targets)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.should_log:
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            self.log("train/grad_norm", nn.utils.get_total_norm(gradients))  # before clipping
            self.log("lr", optimizer.param_groups[0]["lr"])

    @property
    def should_log(self) -> bool:
        """Whether the step under way is one that Lightning writes to the logger.

        Asked before logging, because on all other steps the call would cost a small model much and change nothing.
        """
        return is_logged(self.trainer, self.global_step + 1)

    @torch.compiler.set_stance("force_eager")  # its last blocks have other shapes, each of which would be compiled
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        inputs, targets = batch
        if not len(inputs):  # more ranks than there are batches
            self.mean_loss.update(0.0, weight=0)
            return
        logits = self.net(inputs)
        self.mean_loss.update(self.loss(logits, targets), weight=targets.numel())
        self.accuracy.update(logits.flatten(0, 1), targets.flatten())

    def on_validation_epoch_end(self) -> None:
        metrics = self._scores("val")
        if not self.trainer.sanity_checking:
            self.best_val_loss.update(metrics["val/loss"])
            metrics["val/best_loss"] = self.best_val_loss.compute()
        self.log_dict(metrics, sync_dist=True)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self.log_dict(self._scores("test"), sync_dist=True)

    def _scores(self, part: str) -> dict[str, Tensor | float]:
        """What was counted of all batches and devices, which is then forgotten."""
        loss = self.mean_loss.compute()
        scores: dict[str, Tensor | float] = {
            f"{part}/loss": loss,  # nats per character, or per byte
            f"{part}/perplexity": loss.exp(),
            f"{part}/bp{self.tokenizer.unit[0]}": loss / math.log(2),  # bits per character (bpc), or per byte (bpb)
            f"{part}/accuracy": self.accuracy.compute(),
            "step": float(self.global_step),
        }
        self.mean_loss.reset()
        self.accuracy.reset()
        return scores

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = self.optimizer_config.build(self.net)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: lr_factor(self.optimizer_config, step, self.trainer.max_steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

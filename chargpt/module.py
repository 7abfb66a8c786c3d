"""The LightningModule: a model with its loss, its metrics and its optimizer."""

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MinMetric
from torchmetrics.classification import MulticlassAccuracy

from chargpt.data import Batch
from chargpt.errors import UserError
from chargpt.model import build_model

CPU_PART = 4096  # characters
SCHEDULES = ("constant", "cosine", "linear")


class CharLM(LightningModule):
    """A character-level language model in training.

    Everything logged carries the number of optimizer steps taken as its `step`, which Lightning then uses in place of
    its own count from 0.

    Its hyper-parameters are plain dicts, strings and numbers, so that a checkpoint is complete and loads with
    `weights_only=True`; `chargpt.checkpoint.load_checkpoint` reads it without Lightning.

    Args:
        model: the model's name and sizes; see `chargpt.model.build_model`.
        optimizer: lr, weight_decay, betas, schedule, warmup_steps and min_lr_factor; see `configure_optimizers`.
        characters: the vocabulary, in order of id.
        corpus: what the model is trained on: its `name`, for people, and the `sha256` of the text.

    Raises:
        UserError: a value is out of range.
    """

    def __init__(self, model: dict[str, Any], optimizer: dict[str, Any], characters: str, corpus: dict[str, str]):
        super().__init__()
        self.save_hyperparameters(logger=False)
        _check_optimizer(**optimizer)
        self.net = build_model(model, vocab_size=len(characters))
        self.val_loss = MeanMetric()
        self.val_accuracy = MulticlassAccuracy(len(characters), average="micro")
        self.best_val_loss = MinMetric()
        self.best_val_loss.persistent(True)  # in the checkpoint: the best score so far outlives an interruption

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy in nats a character of logits (B, T, vocab_size) against targets (B, T)."""
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.training_loss(*batch)
        if self.should_log:
            self.log_dict({"train/loss": loss.detach(), "step": float(self.global_step + 1)})
        return loss

    def training_loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch, inputs and targets (B, T).

        Sequences do not touch one another, so a CPU takes them in parts: what a layer writes is then still in the cache
        when the next one reads it. Other devices take all at once.
        """
        parts = inputs.split(max(1, CPU_PART // inputs.shape[1])) if inputs.device.type == "cpu" else [inputs]
        if len(parts) == 1:
            return self.loss(self.net(inputs), targets)
        weights = {}
        if torch.is_autocast_enabled("cpu"):  # converted here once, instead of in each part
            dtype = torch.get_autocast_dtype("cpu")
            linears = ((name, m) for name, m in self.net.named_modules() if isinstance(m, nn.Linear))
            weights = {f"{name}.weight": linear.weight.to(dtype) for name, linear in linears}
        logits = [torch.func.functional_call(self.net, weights, (part,)) for part in parts]
        return self.loss(torch.cat(logits), targets)

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
        return (self.global_step + 1) % self.trainer.log_every_n_steps == 0

    @torch.compiler.set_stance("force_eager")  # its last blocks have other shapes, each of which would be compiled
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        inputs, targets = batch
        logits = self.net(inputs)
        self.val_loss.update(self.loss(logits, targets), weight=targets.numel())
        self.val_accuracy.update(logits.flatten(0, 1).argmax(-1), targets.flatten())

    def on_validation_epoch_end(self) -> None:
        loss = self.val_loss.compute()
        metrics = {
            "val/loss": loss,  # nats a character
            "val/perplexity": loss.exp(),
            "val/bpc": loss / math.log(2),  # bits a character
            "val/accuracy": self.val_accuracy.compute(),
            "step": float(self.global_step),
        }
        if not self.trainer.sanity_checking:
            self.best_val_loss.update(loss)
            metrics["val/best_loss"] = self.best_val_loss.compute()
        self.log_dict(metrics, sync_dist=True)
        self.val_loss.reset()
        self.val_accuracy.reset()

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW (Loshchilov & Hutter 2019) and a schedule that follows optimizer steps.

        Matrices decay; biases, LayerNorms and embeddings do not. The learning rate rises over `warmup_steps`, then
        stays (`constant`) or falls to `min_lr_factor` times its peak at the last step (`cosine`, `linear`).
        """
        config = self.hparams.optimizer
        embeddings = {id(m.weight) for m in self.net.modules() if isinstance(m, nn.Embedding)}
        decays = {True: [], False: []}
        for parameter in self.net.parameters():
            decays[parameter.dim() >= 2 and id(parameter) not in embeddings].append(parameter)
        optimizer = torch.optim.AdamW(
            [
                {"params": decays[True], "weight_decay": config["weight_decay"]},
                {"params": decays[False], "weight_decay": 0.0},
            ],
            lr=config["lr"],
            betas=tuple(config["betas"]),
            fused=True,
        )
        # Lightning would refuse to clip gradients beside a fused optimizer, which can take over a gradient scaler's
        # work; without this ability, scaling (16-mixed only) is undone before clipping, as for any other optimizer.
        optimizer._step_supports_amp_scaling = False
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._lr_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _lr_factor(self, step: int) -> float:
        """What the peak learning rate is multiplied with in optimizer step `step`, counted from 0."""
        config = self.hparams.optimizer
        warmup, floor = config["warmup_steps"], config["min_lr_factor"]
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if config["schedule"] == "constant":
            return 1.0
        done = min(1.0, (step - warmup) / max(1, self.trainer.max_steps - 1 - warmup))
        remaining = 1 - done if config["schedule"] == "linear" else (1 + math.cos(math.pi * done)) / 2
        return floor + (1 - floor) * remaining


def _check_optimizer(
    lr: float, weight_decay: float, betas: list[float], schedule: str, warmup_steps: int, min_lr_factor: float
) -> None:
    if not 0 < lr < math.inf:
        raise UserError(f"optimizer.lr must be above 0; got {lr}")
    if not 0 <= weight_decay < math.inf:
        raise UserError(f"optimizer.weight_decay must be at least 0; got {weight_decay}")
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise UserError(f"optimizer.betas must be two numbers, each at least 0 and below 1; got {list(betas)}")
    if schedule not in SCHEDULES:
        raise UserError(f"optimizer.schedule must be one of {', '.join(SCHEDULES)}; got {schedule!r}")
    if warmup_steps < 0:
        raise UserError(f"optimizer.warmup_steps must be at least 0; got {warmup_steps}")
    if not 0 <= min_lr_factor <= 1:
        raise UserError(f"optimizer.min_lr_factor must be between 0 and 1; got {min_lr_factor}")

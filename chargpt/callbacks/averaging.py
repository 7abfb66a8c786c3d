"""A running average of the weights, which removes the noise of single steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from chargpt.errors import UserError


class Averaging(Callback):
    """Keeps an exponential moving average of the weights (Polyak & Juditsky 1992). The average is validated, saved as
    the best and sampled; training continues from its own weights.

    A full checkpoint holds both: the average in `state_dict`, the weights in training in `current_model_state`.
    (Lightning's EMAWeightAveraging has no warm-up, and its average is gone when a callback saves after a validation.)

    Args:
        decay: the share of the average that stays in each step, so that it covers about 1 / (1 - decay) steps; at most
            (1 + n) / (10 + n) after n steps, so that the first weights are soon forgotten. None averages nothing.
    """

    def __init__(self, decay: float | None = None):
        if decay is not None and not 0 < decay < 1:
            raise UserError(f"callbacks.averaging.decay must be between 0 and 1, both excluded, or null; got {decay}")
        self.decay = decay
        self._average: AveragedModel | None = None
        self._restored: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: Trainer, module: Any) -> None:
        if self.decay is None:
            return
        if trainer.precision in ("bf16-true", "16-true"):  # most of the average's small changes would be rounded away
            raise UserError(f"callbacks.averaging needs single precision; got trainer.precision={trainer.precision}")
        self._average = AveragedModel(module.net)
        if self._restored:
            self._average.load_state_dict(self._restored)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
        if self.decay is not None and trainer.global_step > self._step:
            assert self._average is not None
            steps = self._average.n_averaged.item()
            self._average.multi_avg_fn = get_ema_multi_avg_fn(min(self.decay, (1 + steps) / (10 + steps)))
            self._average.update_parameters(module.net)
            self._step = trainer.global_step

    def on_validation_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.swap(module)

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.swap(module)

    @torch.no_grad()
    def swap(self, module: Any) -> None:
        """Exchange the weights in training of a CharLM and their average."""
        if self._average is not None:
            for average, weight in zip(self._average.module.parameters(), module.net.parameters(), strict=True):
                kept = weight.clone()
                weight.copy_(average)
                average.copy_(kept)

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._average is not None:
            weights, averages = checkpoint["state_dict"], self._average.module.state_dict(prefix="net.")
            checkpoint["current_model_state"], checkpoint["state_dict"] = weights, weights | averages
            checkpoint["averaging_state"] = {"n_averaged": self._average.n_averaged}

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.decay is not None and "current_model_state" in checkpoint:
            averages = {name: each for name, each in checkpoint["state_dict"].items() if name.startswith("net.")}
            self._restored = {f"module.{name.removeprefix('net.')}": each for name, each in averages.items()}
            self._restored |= checkpoint["averaging_state"]


@contextmanager
def validated_weights(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Give the module the weights that are validated: their average, if there is one.

    At the end of a validation, the module has the weights in training again, so that callbacks in any order may save.
    """
    averages = [each for each in trainer.callbacks if isinstance(each, Averaging)]  # type: ignore[attr-defined]
    for each in averages:
        each.swap(module)
    try:
        yield
    finally:
        for each in averages:
            each.swap(module)

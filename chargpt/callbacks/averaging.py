"""A running average of the weights, which forgets the noise of single steps."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from chargpt.errors import UserError


class Averaging(WeightAveraging):
    """Keeps an exponential moving average of the weights (Polyak & Juditsky 1992). The average is what is validated,
    saved as the best and sampled; training itself goes on from its own weights.

    A full checkpoint holds both: the average as `state_dict`, the weights in training as `current_model_state`.

    Args:
        decay: what share of the average stays at each step: it reaches back about 1 / (1 - decay) steps, but never
            more than a ninth of those so far, so that the weights of the start are soon forgotten: step n has a decay
            of at most (1 + n) / (10 + n). None averages nothing.

    Raises:
        UserError: `decay` is not between 0 and 1.
    """

    def __init__(self, decay: float | None = None):
        if decay is not None and not 0 < decay < 1:
            raise UserError(f"callbacks.averaging.decay must be between 0 and 1, both excluded, or null; got {decay}")
        super().__init__(multi_avg_fn=self._average)
        self.decay = decay

    def _average(self, averages: list[Tensor], weights: list[Tensor], count: Tensor | int) -> None:
        assert self.decay is not None
        get_ema_multi_avg_fn(min(self.decay, float((1 + count) / (10 + count))))(averages, weights, count)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._latest_update_step = trainer.global_step

    def state_dict(self) -> dict[str, Any]:
        """Nothing: up to where it has averaged follows from the step."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing, whatever a file says."""

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return self.decay is not None and step_idx is not None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.decay is None:
            return
        if trainer.precision in ("bf16-true", "16-true"):
            raise UserError(
                f"callbacks.averaging needs weights in single precision; got trainer.precision={trainer.precision}"
            )
        self._device = trainer.strategy.root_device  # where the module is put only after this
        super().setup(trainer, pl_module, stage)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning's would put the average in place of the weights, which may still have to be saved."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._average_model is not None and self._average_model.n_averaged > 0:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)
            # Lightning averages a copy of the whole module, whose metrics stand still.
            averages = {name: value for name, value in checkpoint["state_dict"].items() if name.startswith("net.")}
            checkpoint["state_dict"] = checkpoint["current_model_state"] | averages

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._average_model is not None and "current_model_state" in checkpoint:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


def averages_in(callbacks: Iterable[Callback]) -> list[WeightAveraging]:
    """Those of the callbacks, ours or Lightning's, that average the weights."""
    averages = [each for each in callbacks if isinstance(each, WeightAveraging)]
    return [each for each in averages if not isinstance(each, Averaging) or each.decay is not None]


@contextmanager
def validated_weights(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Inside, the module has the weights that are validated: their average, where there is one.

    For callbacks at the end of a validation. The module has its own weights back by then: a state of training may be
    saved there, too.
    """
    averages = averages_in(trainer.callbacks)  # type: ignore[attr-defined]
    for each in averages:
        each.on_validation_epoch_start(trainer, module)
    try:
        yield
    finally:
        for each in averages:
            each.on_validation_epoch_end(trainer, module)

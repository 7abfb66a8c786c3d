"""The last steps of a run are scored, too."""

from typing import Any

from lightning.pytorch import Callback, Trainer


class ValidateAtEnd(Callback):
    """Validate after the last step, also when it is no multiple of the validation interval.

    Otherwise the last steps of a run would never be scored, and a run shorter than the interval would have no best
    checkpoint. Asking Lightning to stop makes it validate first.
    """

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step >= trainer.max_steps > 0:
            trainer.should_stop = True

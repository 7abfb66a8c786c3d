"""A look at the same few characters after each validation."""

from collections.abc import Iterator

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from chargpt.callbacks.averaging import validated_weights
from chargpt.data import CharDataModule
from chargpt.errors import UserError
from chargpt.model import Model
from chargpt.module import CharLM
from chargpt.tokenizer import Tokenizer


class AtPrompt(Callback):
    """Shows what `look` draws of a prompt in TensorBoard, after each validation, with the weights that are validated.

    Args:
        prompt: characters outside the vocabulary are left out; where too few remain, or it is null, the beginning of
            the validation text stands in.
        length: of its characters the first so many are looked at, as far as they fit into the model's window.

    Attributes:
        beyond: how many characters there are after those that the model reads: they are only predicted.
        longest: the most characters that can be asked for, since each takes room and time.

    Raises:
        UserError: `length` is too small for anything to be seen, or above `longest`.
    """

    beyond = 0
    longest = 100

    def __init__(self, prompt: str | None, length: int):
        if not 1 + self.beyond <= length <= self.longest:
            raise UserError(f"length must be at least {1 + self.beyond} and at most {self.longest}; got {length}")
        if not isinstance(prompt, str | None):
            raise UserError(f"prompt must be a text (a number needs quotes) or null; got {prompt!r}")
        self.prompt = prompt
        self.length = length

    def look(self, net: Model, idx: Tensor, text: str) -> Iterator[tuple[str, np.ndarray]]:
        """For subclasses: pictures, (height, width, 3) bytes, each with its name.

        Args:
            net: in eval mode, as a validation has it until after its end.
            idx: (1, T) ids.
            text: their T characters.
        """
        raise NotImplementedError

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not isinstance(trainer.logger, TensorBoardLogger) or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        assert isinstance(module, CharLM)
        tokenizer = module.tokenizer
        ids = self._ids(trainer, tokenizer, module.net.config.block_size + self.beyond)
        idx = torch.tensor([ids], device=module.device)
        text = "".join(tokenizer.decode([i]) for i in ids)  # one character each, also where that is a part of one
        # A compiled model would be compiled once more, for this one length.
        with validated_weights(trainer, module), torch.inference_mode(), torch.compiler.set_stance("force_eager"):
            for name, picture in self.look(module.net, idx, text):
                trainer.logger.experiment.add_image(name, picture, trainer.global_step, dataformats="HWC")

    def _ids(self, trainer: Trainer, tokenizer: Tokenizer, room: int) -> list[int]:
        """Those of the prompt, as many as there is room for."""
        length = min(self.length, room)
        ids = tokenizer.encode(self.prompt or "", skip_unknown=True)[:length]
        if len(ids) <= self.beyond:
            data = trainer.datamodule  # type: ignore[attr-defined]  # the Trainer has it, undeclared
            assert isinstance(data, CharDataModule)
            ids = data.val_ids[:length].tolist()
        return ids

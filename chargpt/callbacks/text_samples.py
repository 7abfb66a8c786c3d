"""What the model writes, from time to time."""

from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from chargpt.callbacks.averaging import validated_weights
from chargpt.callbacks.hparams import verbatim
from chargpt.errors import UserError
from chargpt.files import decoration
from chargpt.generation import Sampling, generate
from chargpt.history import Sample, add_sample, drop_samples_after
from chargpt.module import CharLM


class TextSamples(Callback):
    """Writes a text sample after each validation, to TensorBoard and to a file that a page shows (see
    `chargpt.samples`): the same prompt and seed each time.

    Args:
        dirpath: the folder of the file.
        prompt: what the sample continues; characters outside the vocabulary are left out, and if none remains the
            first character of the vocabulary stands in.
        length: characters to generate, or bytes.

    Raises:
        UserError: `length` is below 1, or above 10,000, for which training would have to wait too long.
    """

    def __init__(self, dirpath: str, prompt: str = "\n", length: int = 300):
        self.folder = Path(dirpath)
        if not isinstance(prompt, str):
            raise UserError(f"prompt must be a text (a number needs quotes); got {prompt!r}")
        self.prompt = prompt
        if not 1 <= length <= 10_000:
            raise UserError(f"length must be at least 1 and at most 10,000; got {length}")
        self.sampling = Sampling(max_new_tokens=length)

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        with decoration("samples.jsonl"):
            self.folder.mkdir(parents=True, exist_ok=True)
            drop_samples_after(self.folder, trainer.global_step)

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        assert isinstance(module, CharLM)
        tokenizer = module.tokenizer
        prompt = tokenizer.encode(self.prompt, skip_unknown=True) or [0]
        generator = torch.Generator(module.device).manual_seed(0)  # the run's own random numbers stay as they are
        with validated_weights(trainer, module):
            ids = list(generate(module.net, torch.tensor([prompt], device=module.device), self.sampling, generator))
        text = tokenizer.decode([*prompt, *torch.cat(ids).tolist()])
        with decoration("samples.jsonl"):
            add_sample(self.folder, Sample(trainer.global_step, text))
        if isinstance(trainer.logger, TensorBoardLogger):
            trainer.logger.experiment.add_text("sample", verbatim(text), trainer.global_step)

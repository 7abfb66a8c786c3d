"""A text sample from time to time."""

from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from chargpt.callbacks.averaging import validated_weights
from chargpt.callbacks.tensorboard import tensorboards, verbatim
from chargpt.files import decoration
from chargpt.generation import Sampling, generate
from chargpt.history import SAMPLES, Sample, add_sample, drop_samples_after
from chargpt.module import CharLM


class TextSamples(Callback):
    """Generates a text after each validation, from the same prompt and seed each time, for TensorBoard and for
    `samples.jsonl`, which the page shows.

    Args:
        dirpath: the folder of the file.
        prompt: the beginning of the text; characters outside the vocabulary are left out. If none remains, the first
            character of the vocabulary stands in.
        length: characters to generate, or bytes; training waits for them.
    """

    def __init__(self, dirpath: str, prompt: str = "\n", length: int = 300):
        self.folder = Path(dirpath)
        self.prompt = str(prompt)  # Hydra reads some texts as numbers
        self.sampling = Sampling(max_new_tokens=length)

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        with decoration(SAMPLES):
            self.folder.mkdir(parents=True, exist_ok=True)
            drop_samples_after(self.folder, trainer.global_step)

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        assert isinstance(module, CharLM)
        prompt = module.tokenizer.encode(self.prompt, skip_unknown=True) or [0]
        generator = torch.Generator(module.device).manual_seed(0)  # training draws the same numbers as without samples
        with validated_weights(trainer, module):
            ids = list(generate(module.net, torch.tensor([prompt], device=module.device), self.sampling, generator))
        text = module.tokenizer.decode([*prompt, *torch.cat(ids).tolist()])
        with decoration(SAMPLES):
            add_sample(self.folder, Sample(trainer.global_step, text))
        for logger in tensorboards(trainer):
            logger.experiment.add_text("sample", verbatim(text), trainer.global_step)

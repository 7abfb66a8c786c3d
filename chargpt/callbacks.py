"""What a run shows while it goes on."""

import logging
import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from chargpt.errors import NonFiniteError
from chargpt.generate import generate
from chargpt.module import CharLM

log = logging.getLogger(__name__)


class ValidateAtEnd(Callback):
    """Validate after the last step, also when it is no multiple of the validation interval.

    Otherwise the last steps of a run would never be scored, and a run shorter than the interval would have no best
    checkpoint. Asking Lightning to stop makes it validate first.
    """

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step >= trainer.max_steps > 0:
            trainer.should_stop = True


class StopOnNonFinite(Callback):
    """Ends the run with `NonFiniteError` when the loss is no longer a number.

    On a CPU every step is looked at, elsewhere those that are logged, since each look makes the device finish its work.
    """

    def on_train_batch_end(self, trainer: Trainer, module: CharLM, outputs: dict[str, torch.Tensor], *_: Any) -> None:
        loss = outputs["loss"]
        looks = loss.device.type == "cpu" or trainer.global_step % trainer.log_every_n_steps == 0
        if looks and not loss.isfinite():
            raise NonFiniteError(f"the training loss is {loss.item()} in step {trainer.global_step}")

    def on_validation_end(self, trainer: Trainer, module: CharLM) -> None:
        loss = trainer.callback_metrics["val/loss"]
        if not loss.isfinite():
            raise NonFiniteError(f"the validation loss is {loss.item()} after step {trainer.global_step}")


class Throughput(Callback):
    """Logs `chars_per_second`: characters trained on, of all devices together, in a second of training.

    Measured from one logged step to the next, without the time that validation and its like take in between.
    """

    def on_train_start(self, trainer: Trainer, module: CharLM) -> None:
        self._step, self._since = trainer.global_step, time.perf_counter()

    def on_validation_start(self, trainer: Trainer, module: CharLM) -> None:
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, module: CharLM) -> None:
        if not trainer.sanity_checking:
            self._since += time.perf_counter() - self._paused

    def on_train_batch_end(
        self, trainer: Trainer, module: CharLM, outputs: Any, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int
    ) -> None:
        steps = trainer.global_step - self._step
        if steps and trainer.global_step % trainer.log_every_n_steps == 0:
            characters = steps * trainer.accumulate_grad_batches * batch[0].numel() * trainer.world_size
            now = time.perf_counter()
            module.log("chars_per_second", characters / (now - self._since))
            self._step, self._since = trainer.global_step, now


class Progress(ProgressBar):
    """A bar in optimizer steps on a terminal; elsewhere a line after each validation and every `seconds` at most.

    It looks at the loss only on steps that are logged, since every look makes the device finish its work.
    """

    def __init__(self, seconds: float = 10.0):
        super().__init__()
        self.seconds = seconds
        self._enabled = True
        self._bar: tqdm | None = None

    def disable(self) -> None:  # Lightning calls this on all processes but the first
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, module: CharLM) -> None:
        if not self._enabled:
            return
        self._first_step, self._started, self._printed = trainer.global_step, time.perf_counter(), time.perf_counter()
        if sys.stderr.isatty():
            self._bar = tqdm(total=trainer.max_steps, initial=trainer.global_step, unit="step", dynamic_ncols=True)
            self._redirect = logging_redirect_tqdm()  # log lines go above the bar, not through it
            self._redirect.__enter__()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if not self._enabled or trainer.global_step % trainer.log_every_n_steps:
            return
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(self._values(trainer)), refresh=False)
            self._bar.update(trainer.global_step - self._bar.n)
        elif time.perf_counter() - self._printed >= self.seconds:
            self._print_line(trainer)

    def on_validation_end(self, trainer: Trainer, module: CharLM) -> None:
        if self._enabled and not trainer.sanity_checking and trainer.state.fn == "fit":
            if self._bar is not None:
                self._bar.update(trainer.global_step - self._bar.n)
            self._print_line(trainer)

    def on_train_end(self, trainer: Trainer, module: CharLM) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, module: CharLM, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
            self._redirect.__exit__(None, None, None)

    def _print_line(self, trainer: Trainer) -> None:
        self._printed = time.perf_counter()
        each = (self._printed - self._started) / max(1, trainer.global_step - self._first_step)
        left = tqdm.format_interval(each * max(0, trainer.max_steps - trainer.global_step))
        log.info(", ".join([f"step {trainer.global_step}/{trainer.max_steps}", *self._values(trainer), f"{left} left"]))

    @staticmethod
    def _values(trainer: Trainer) -> list[str]:
        metrics = trainer.callback_metrics
        shown = {"train/loss": "loss {:.4f}", "val/loss": "val loss {:.4f}", "chars_per_second": "{:,.0f} chars/s"}
        return [text.format(metrics[name].item()) for name, text in shown.items() if name in metrics]


class RunRecord(Callback):
    """Puts into TensorBoard what tells one run from another: its configuration, and HParams with the best val loss.

    Args:
        settings: the composed configuration in plain containers.
    """

    def __init__(self, settings: dict[str, Any]):
        self.settings = settings
        self._recorded = False

    def state_dict(self) -> dict[str, bool]:
        return {"recorded": self._recorded}

    def load_state_dict(self, state_dict: dict[str, bool]) -> None:
        self._recorded = bool(state_dict["recorded"])

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, module: CharLM) -> None:
        if isinstance(trainer.logger, TensorBoardLogger):
            text = f"# trained on {module.hparams.corpus['name']}\n{OmegaConf.to_yaml(OmegaConf.create(self.settings))}"
            trainer.logger.experiment.add_text("config", _verbatim(text), trainer.global_step)

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, module: CharLM) -> None:
        if isinstance(trainer.logger, TensorBoardLogger) and not trainer.sanity_checking and not self._recorded:
            # The tab shows only metrics that were named together with the hyper-parameters.
            best = trainer.callback_metrics["val/best_loss"]
            hparams = {
                "text": module.hparams.corpus["name"],
                "seed": self.settings["seed"],
                "model": self.settings["model"],
                "optimizer": self.settings["optimizer"],
                "batch_size": self.settings["data"]["batch_size"],
                "max_steps": trainer.max_steps,
                "accumulate_grad_batches": trainer.accumulate_grad_batches,
                "precision": trainer.precision,
            }
            trainer.logger.log_hyperparams(hparams, {"val/best_loss": best}, step=trainer.global_step)
            self._recorded = True


class TextSamples(Callback):
    """Writes a text sample to TensorBoard after each validation: the same prompt and seed each time.

    Args:
        prompt: what the sample continues; characters outside the vocabulary are left out, and if none remains the
            first character of the vocabulary stands in.
        length: characters to generate.
    """

    def __init__(self, prompt: str = "\n", length: int = 300):
        self.prompt = prompt
        self.length = length

    @rank_zero_only
    @torch.compiler.set_stance("force_eager")  # every length of a text would be compiled
    def on_validation_end(self, trainer: Trainer, module: CharLM) -> None:
        if not isinstance(trainer.logger, TensorBoardLogger) or trainer.sanity_checking:
            return
        tokenizer = trainer.datamodule.corpus.tokenizer
        prompt = tokenizer.encode(self.prompt, skip_unknown=True) or [0]
        generator = torch.Generator(module.device).manual_seed(0)  # the run's own random numbers stay as they are
        ids = generate(module.net, torch.tensor([prompt], device=module.device), self.length, generator=generator)
        text = tokenizer.decode([*prompt, *torch.cat(list(ids)).tolist()])
        trainer.logger.experiment.add_text("sample", _verbatim(text), trainer.global_step)


def _verbatim(text: str) -> str:
    """Markdown that shows the text as it stands."""
    return "    " + text.replace("\n", "\n    ")

"""The messages of a run: at its beginning and at its end, with a verdict on its curve."""

import logging
import math
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig

from chargpt.batches import PART_NAMES
from chargpt.callbacks.records import tensorboards
from chargpt.callbacks.saving import stopped_early
from chargpt.checkpoint import Checkpoint, find_checkpoint, read_checkpoint
from chargpt.command_line import quoted
from chargpt.corpus import Corpus
from chargpt.errors import one_line
from chargpt.evaluate import score
from chargpt.files import best_effort
from chargpt.history import Point, drop_after, read_job, read_losses, write_record
from chargpt.kernels.choice import machine_name
from chargpt.run.build import Run, keep_rows
from chargpt.run.devices import check_number
from chargpt.run.folder import claim, has_state, short
from chargpt.run.resume import Resumption, began_with, command_to_resume, store

log = logging.getLogger("train")
log.setLevel(logging.DEBUG)  # details go to the run's log; the terminal has a level of INFO

FEWEST = 3  # validations; fewer do not show a trend
NOISE, DIVERGED = 0.01, 0.1  # rises above the lowest loss, as shares of it: beyond chance, beyond repair


def quieten() -> None:
    """Silence messages of Lightning that every run would show."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger(name).handlers.clear()  # Hydra's handlers show these, too
    for name in ("profilers", "callbacks.early_stopping", "callbacks.timer"):  # the user has asked for these
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.INFO)
    for message in (
        "does not have many workers",  # batches are made faster than they move between processes
        "Experiment logs directory.*exists and is not empty",  # its rows are kept
        "your dataloader is not resumable",  # a batch follows from the step alone
        "callbacks used to create the checkpoint need to be provided",  # their overrides had to be typed again
        "LeafSpec.*is deprecated",  # between Lightning 2.6 and torch 2.13
    ):
        warnings.filterwarnings("ignore", f".*{message}.*")


def begin(run: Run, cfg: DictConfig, resumption: Resumption | None, initial: Checkpoint | None) -> None:
    """Claim the run's folder, store the configuration in it, and log what is trained."""
    check_number(run.trainer)
    folder, first_step = Path(run.settings.run_dir), resumption.step if resumption else 0
    if run.trainer.is_global_zero:
        if resumption is None:
            claim(folder, began_here=began_with(cfg, folder))
            store(cfg, folder)
        else:
            run.state.at_first_step = partial(store, cfg, folder)
        if job := read_job(folder):  # of a sweep
            write_record(folder, replace(job, finished=False, error=None))
        with best_effort("losses.csv or samples.jsonl"):
            drop_after(folder, first_step)
        keep_rows(run.trainer.loggers, first_step)
    log.info(describe(run, initial, first_step))


def describe(run: Run, initial: Checkpoint | None, first_step: int) -> str:
    """The texts, the model and its device and precision, and where the run begins: a line each."""
    data, trainer = run.data, run.trainer
    sizes = [f"{PART_NAMES[part]} {len(ids):,}" for part, (corpus, ids) in data.parts.items() if corpus is data.corpus]
    lines = [f"Text: {_of(data.corpus)}" + (f" ({', '.join(sizes)})" if len(sizes) > 1 else "")]
    others = {part: corpus for part, (corpus, _) in data.parts.items() if corpus is not data.corpus}
    lines += [f"{PART_NAMES[part].capitalize()} text: {_of(corpus)}" for part, corpus in others.items()]
    size = f"{sum(parameter.numel() for parameter in run.module.net.parameters()):,} parameters"
    how = f"in {trainer.precision}{run.precision}{', compiled' if run.compiled else ''}"
    lines.append(f"Model: {run.settings.model.name}, {size}, on {trainer.strategy.root_device} {how}")
    if initial is not None:
        lines.append(f"Weights to start from: {run.settings.init_from}")
    lines.append(f"Run: {short(Path(run.settings.run_dir))}" + (f", from step {first_step}" if first_step else ""))
    return "\n".join(map(one_line, lines))


def _of(corpus: Corpus) -> str:
    distinct = "" if corpus.tokenizer.characters is None else f", {corpus.tokenizer.vocab_size:,} of them distinct"
    return f"{corpus.name}, {len(corpus.ids):,} {corpus.tokenizer.unit}s{distinct}"


class Outcome(NamedTuple):
    """The best validation loss of a run, in nats per id, and whether it reached its length or stopped early."""

    best_loss: float
    finished: bool


def finished_before(run: Run, resumption: Resumption) -> Outcome | None:
    """The outcome if nothing is left to train; logs why. With `resume=allow`, a run that early stopping ended is
    finished: a scheduler that repeats the command would otherwise train up to the next validation each time."""
    folder, steps = short(Path(run.settings.run_dir)), resumption.step
    if steps >= run.trainer.max_steps:
        log.info(f"{folder} is finished, {steps} steps; a larger trainer.max_steps resumes it")
    elif resumption.stopped_early and run.settings.resume == "allow":
        log.info(f"{folder} stopped early, after {steps} steps; resume={folder} resumes it")
    else:
        return None
    best = resumption.checkpoint.best_loss
    return Outcome(math.inf if best is None else best, finished=True)


def end(run: Run, seconds: float, resumption: Resumption | None) -> Outcome:
    """Log how the run ended after so many seconds, and score the test text."""
    best, complete = float(run.module.best_val_loss.min_value), run.trainer.global_step >= run.trainer.max_steps
    if run.trainer.is_global_zero:
        log.info(summary(run, seconds, resumption.step if resumption else 0))
        if complete:
            test(run)
    return Outcome(best, complete or stopped_early(run.trainer))


def summary(run: Run, seconds: float, first_step: int) -> str:
    """The best loss, the verdict on the curve, and the commands that come next."""
    path, trainer, tokenizer = Path(run.settings.run_dir), run.trainer, run.data.tokenizer
    best, folder = float(run.module.best_val_loss.min_value), str(short(path))
    number = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
    machine = number + machine_name(trainer.strategy.root_device)
    steps = f"{trainer.global_step - first_step} steps in {seconds:.0f} s ({machine})"
    steps += f", {trainer.global_step} in all" if first_step else ""
    text = one_line(run.data.parts["val"][0].name)
    scored = f"Best validation loss {best:.4f} (nats per {tokenizer.unit}, on {text}), {steps}"
    shown = verdict(read_losses(path), trainer.max_steps)
    lines = ["", scored if best < math.inf else f"Not validated, {steps}", *filter(None, [shown])]
    if trainer.global_step < trainer.max_steps and has_state(path):  # a time limit, early stopping or the like
        lines.append(f"To resume:   {command_to_resume(path)}")
    if (path / "checkpoints" / "best.ckpt").exists():
        lines.append(f"Checkpoint:  {short(path / 'checkpoints' / 'best.ckpt')}")
        lines.append(f"Sample it:   {quoted(['python', 'sample.py', '--ckpt', folder])}")
        if tokenizer.characters is not None:
            lines.append(f"Look inside: {quoted(['python', '-m', 'chargpt.page', '--ckpt', folder])}")
    if tensorboards(trainer):
        lines.append(f"See curves:  {quoted(['tensorboard', '--logdir', folder])}")
    return "\n".join(lines)


def test(run: Run) -> None:
    """Score the test text with the weights of the lowest validation loss, or else the last ones, and log the loss."""
    folder, ids = Path(run.settings.run_dir, "checkpoints"), run.data.test_ids
    if ids is None or not any(folder.glob("*.ckpt")):
        return
    log.info("Scoring the test text")
    trained = read_checkpoint(file := find_checkpoint(folder))
    loss = score(trained.model.to(run.trainer.strategy.root_device).eval(), ids, trained.scoring)[0]
    bits = f"{loss / math.log(2):.4f} bits per {trained.tokenizer.unit}"
    log.info(f"Test loss {loss:.4f} ({bits}), with the weights in {file.name}")
    for logger in run.trainer.loggers:
        logger.log_metrics({"test/loss": loss}, run.trainer.global_step)
        logger.save()


def verdict(points: Sequence[Point], max_steps: int) -> str:
    """The verdict on a curve, with advice; empty if the validations, in order, do not show anything."""
    points = [point for point in points if math.isfinite(point.train_loss)]
    if len(points) < FEWEST:
        return ""
    last, best = points[-1], min(points, key=lambda point: point.val_loss)
    before, after = points[: points.index(best) + 1], points[points.index(best) + 1 :]
    rise = f"validation loss rose from {best.val_loss:.4f} to {last.val_loss:.4f}"
    has_risen = last.val_loss > (1 + NOISE) * best.val_loss
    # A training loss is that of one batch: compare means over equally many points before and after the minimum.
    if has_risen and _train_loss(after) < _train_loss(before[-len(after) :]):
        advice = "More dropout, more text or a smaller model may help; sampling takes the best checkpoint anyway"
        return f"Overfitting since step {best.step:,}: {rise} while training loss fell. {advice}"
    if last.val_loss > (1 + DIVERGED) * best.val_loss:
        return f"Diverged: {rise}. A lower optimizer.lr, a longer warm-up or trainer.gradient_clip_val=1 may help"
    if has_risen:
        return ""
    earlier = [point for point in points if 3 * point.step <= 2 * last.step] or points[:1]  # a third of the run ago
    was = min(earlier, key=lambda point: point.val_loss)
    fallen, in_all = was.val_loss - best.val_loss, points[0].val_loss - best.val_loss
    steadily = last is best and 3 * fallen >= in_all > 0  # in its last third as much as before: a slow beginning
    if fallen <= NOISE * best.val_loss and not steadily:
        change = f"from {was.val_loss:.4f} at step {was.step:,} to {best.val_loss:.4f}"
        return f"Levelled off: validation loss fell only {change}. More steps alone would help little"
    if last.step < max_steps:
        return f"Validation loss was still falling, after {last.step:,} of {max_steps:,} steps: it is worth going on"
    return "Validation loss was still falling: a longer run (a larger trainer.max_steps) should end lower"


def _train_loss(points: Sequence[Point]) -> float:
    return statistics.fmean(point.train_loss for point in points)

"""What the curve of a run says of it, in words."""

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise

from chargpt.curve import Point

FEWEST = 3  # validations; fewer do not tell how the loss goes on
NOISE = 0.01  # the share of a loss by which two validations may differ without a reason
MUCH = 0.1  # the share of the lowest loss by which that of a run that diverged is above it, at least


def verdict(points: Sequence[Point], max_steps: int, vocab_size: int, *, constant: bool = True) -> str:
    """How a run went, and what would be worth a try; empty where that cannot be told.

    Args:
        points: its validations, in order.
        max_steps: the steps that were planned.
        vocab_size: distinct ids.
        constant: whether the learning rate stays where it is. Where it falls with the planned steps, the loss falls
            with it, and more steps are another run.
    """
    if len(points) < FEWEST:
        return ""
    losses, last, guessing = [point.val_loss for point in points], points[-1], math.log(vocab_size)
    lowest = losses.index(min(losses))
    best = points[lowest]
    noise = max([NOISE * best.val_loss, *(after - before for before, after in pairwise(losses[: lowest + 1][-5:]))])
    risen = last.val_loss - best.val_loss
    # A training loss is that of one batch: as many points are averaged before the lowest as there are after it.
    later = len(points) - lowest - 1
    before, after = _train_loss(points[: lowest + 1][-later:] if later else points), _train_loss(points[lowest + 1 :])
    if risen > noise and after < before:
        return (
            f"Overfitting since step {best.step:,}: validation loss rose from {best.val_loss:.4f} to"
            f" {last.val_loss:.4f} while training loss fell. More dropout, more text or a smaller model may help;"
            " sampling takes the best checkpoint anyway"
        )
    lower_lr = "A lower optimizer.lr, a longer optimizer.warmup_steps or trainer.gradient_clip_val=1 may help"
    if risen > noise + MUCH * best.val_loss and after >= before:
        return f"Diverged: validation loss rose from {best.val_loss:.4f} to {last.val_loss:.4f}. {lower_lr}"
    falls = losses == sorted(losses, reverse=True)
    if last.val_loss > (1 + NOISE) * guessing and not falls:
        return f"Diverged: validation loss is {last.val_loss:.4f}, above that of guessing, {guessing:.4f}. {lower_lr}"
    if risen > noise:
        return ""
    earlier = [point for point in points if 3 * point.step <= 2 * last.step] or points[:1]  # a third of the run ago
    was = min(earlier, key=lambda point: point.val_loss)
    fallen = was.val_loss - best.val_loss
    steady = falls and 3 * fallen >= losses[0] - best.val_loss > 0  # slow as it may be: a run that has hardly begun
    if fallen <= NOISE * best.val_loss and not steady:
        return (
            f"Levelled off: the lowest validation loss is {best.val_loss:.4f}, and was {was.val_loss:.4f} at step"
            f" {was.step:,} already. More steps alone would change little"
        )
    if last.step < max_steps:
        return f"Validation loss was still falling, after {last.step:,} of {max_steps:,} steps: it is worth going on"
    if constant:
        return "Validation loss was still falling at the end: with a larger trainer.max_steps it should end lower"
    return (
        "Validation loss was still falling at the end, as a falling learning rate makes it: a new run with a larger"
        " trainer.max_steps would probably end lower"
    )


def _train_loss(points: Sequence[Point]) -> float:
    """Their mean training loss; not a number where none was logged."""
    known = [point.train_loss for point in points if math.isfinite(point.train_loss)]
    return statistics.mean(known) if known else math.nan

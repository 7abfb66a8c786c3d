"""Callbacks that do harm, for tests to name in a configuration."""

import os
import signal

import torch
from lightning.pytorch import Callback


class SignalAt(Callback):
    """Sends this process a signal in the given optimizer steps, as a person or a scheduler would.

    Args:
        rank: of several processes the only one that gets it; all do by default.
        once: a file that is made then, and keeps later processes from doing it again.
    """

    def __init__(self, steps, signum=signal.SIGTERM, when="on_train_batch_start", rank=None, once=None):
        self.steps = set(steps) if once is None or not os.path.exists(once) else set()
        self.once = once
        self.signum = signum
        self.rank = rank
        setattr(self, when, self.strike)

    def strike(self, trainer, *_):
        if trainer.global_step in self.steps and self.rank in (None, trainer.global_rank):
            self.steps.discard(trainer.global_step)
            if self.once is not None:
                open(self.once, "w").close()
            os.kill(os.getpid(), self.signum)


class Poison(Callback):
    """Makes weights not a number after the given step: before the next one sees them, or once it is done."""

    def __init__(self, step, when="on_train_batch_start"):
        self.step = step
        setattr(self, when, self.strike)

    def strike(self, trainer, module, *_):
        if trainer.global_step == self.step:
            next(module.net.parameters()).data.fill_(float("nan"))


class Raise(Callback):
    """Raises an error by name in a step, of several processes in one where `rank` is given."""

    def __init__(self, step, error, when="on_train_batch_start", rank=None):
        self.step = step
        self.error = error
        self.rank = rank
        setattr(self, when, self.strike)

    def strike(self, trainer, *_):
        if trainer.global_step == self.step and self.rank in (None, trainer.global_rank):
            raise {
                "memory": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
                "disk": OSError(28, "No space left on device"),
                "bug": KeyError("a bug"),
            }[self.error]


class Slow(Callback):
    """Takes time on the clock below: in every batch, before every optimizer step, after every validation."""

    def __init__(self, batch=0.0, step=0.0, validation=0.0):
        self.batch = batch
        self.step = step
        self.validation = validation

    def on_before_backward(self, *_):
        clock.sleep(self.batch)

    def on_before_optimizer_step(self, *_):
        clock.sleep(self.step)

    def on_validation_start(self, *_):
        clock.sleep(self.validation)

    def on_validation_batch_start(self, *_):
        clock.sleep(self.validation)

    def on_validation_end(self, *_):
        clock.sleep(self.validation)


class Clock:
    """Seconds that pass only when somebody sleeps."""

    now = 0.0

    def sleep(self, seconds):
        self.now += seconds

    def __call__(self):
        return self.now


clock = Clock()  # a test puts it in place of time.perf_counter


class Worsen(Callback):
    """Turns the weights of the last layer around, so that no later step has better ones.

    Args:
        step: the optimizer step, counted from 0, before which it does so.
    """

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, module, *_):
        if trainer.global_step == self.step:
            with torch.no_grad():
                module.net.lm_head.weight.mul_(-30)

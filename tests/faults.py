"""Callbacks that do harm, for tests to name in a configuration."""

import os
import signal

from lightning.pytorch import Callback


class SignalAt(Callback):
    """Sends this process a signal in the given optimizer steps, as a person or a scheduler would."""

    def __init__(self, steps, signum=signal.SIGTERM, when="on_train_batch_start"):
        self.steps = set(steps)
        self.signum = signum
        setattr(self, when, self.strike)

    def strike(self, trainer, *_):
        if trainer.global_step in self.steps:
            self.steps.discard(trainer.global_step)
            os.kill(os.getpid(), self.signum)


class Poison(Callback):
    """Makes the weights not a number after the given step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, module, *_):
        if trainer.global_step == self.step:
            next(module.net.parameters()).data.fill_(float("nan"))


class Raise(Callback):
    """Raises an error by name in a step."""

    def __init__(self, step, error):
        self.step = step
        self.error = error

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise {
                "memory": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
                "disk": OSError(28, "No space left on device"),
                "bug": KeyError("a bug"),
            }[self.error]

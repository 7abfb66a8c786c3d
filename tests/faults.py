"""Callbacks that do harm, for tests to name in a configuration."""

import os
import signal
import threading

import numpy as np
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping


class Harm(Callback):
    """Calls `strike` when the hook `when` runs in an optimizer step, once, on one rank or on all."""

    def __init__(self, step, when="on_train_batch_start", rank=None):
        self.steps, self.rank = {step}, rank
        setattr(self, when, self.check)

    def check(self, trainer, module, *_):
        if trainer.global_step in self.steps and self.rank in (None, trainer.global_rank):
            self.steps.discard(trainer.global_step)
            self.strike(module)


class SignalAt(Harm):
    """Sends this process a signal in each of several steps, or so many seconds `late`; the file `once` keeps later
    processes from it."""

    def __init__(self, steps, signum=signal.SIGTERM, once=None, late=0, **options):
        super().__init__(None, **options)
        self.steps = set() if once is not None and os.path.exists(once) else set(steps)
        self.signum, self.once, self.late = signum, once, late

    def strike(self, module):
        if self.once is not None:
            open(self.once, "w").close()
        if self.late:
            threading.Timer(self.late, os.kill, (os.getpid(), self.signum)).start()
        else:
            os.kill(os.getpid(), self.signum)


class Stop(Harm):
    """Asks the run to stop."""

    def strike(self, module):
        module.trainer.should_stop = True


class Poison(Harm):
    """Makes weights not a number."""

    def strike(self, module):
        next(module.net.parameters()).data.fill_(float("nan"))


class Worsen(Harm):
    """Turns the weights of the last layer around, so that no later step has better ones."""

    def strike(self, module):
        with torch.no_grad():
            module.net.lm_head.weight.mul_(-30)


class Raise(Harm):
    """Raises an error by name."""

    def __init__(self, step, error, **options):
        super().__init__(step, **options)
        self.error = error

    def strike(self, module):
        raise {
            "memory": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
            "disk": OSError(28, "No space left on device"),
            "bug": KeyError("a bug"),
        }[self.error]


class Clock:
    """Seconds that pass only in `sleep`; a test puts it in place of time.perf_counter."""

    now = 0.0

    def sleep(self, seconds):
        self.now += seconds

    def __call__(self):
        return self.now


clock = Clock()


class Slow(Callback):
    """Takes time on the clock above: in every batch, before every optimizer step, in every hook of a validation."""

    def __init__(self, batch=0.0, step=0.0, validation=0.0):
        self.on_before_backward = lambda *_: clock.sleep(batch)
        self.on_before_optimizer_step = lambda *_: clock.sleep(step)
        for hook in ("on_validation_start", "on_validation_batch_start", "on_validation_end"):
            setattr(self, hook, lambda *_: clock.sleep(validation))


class Keeps(Callback):
    """Has a value in its state or in the checkpoint, which from step 5 on is one that cannot be loaded as data."""

    def __init__(self, extra, value=None):
        self.extra = extra
        self.value = value or {"best": 9.0, "x": torch.ones(2)}

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step >= 5:
            self.value = (lambda: 9) if self.extra else np.float64(9)

    def state_dict(self):
        return {"value": None if self.extra else self.value}

    def on_save_checkpoint(self, trainer, module, checkpoint):
        checkpoint["extra_state"] = self.value if self.extra else None


class Early(EarlyStopping):
    """Passes its arguments on, as a subclass may."""

    def __init__(self, **options):
        super().__init__(**options)

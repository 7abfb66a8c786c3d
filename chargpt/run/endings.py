"""How a run that fails is told of: in one line and with a status, where no traceback is needed."""

import errno
from pathlib import Path
from typing import Any, cast

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from chargpt.errors import NonFiniteError, UserError, did_you_mean, first_line, is_out_of_memory
from chargpt.run.stored import options_of

FULL, CLOSED = ("ENOSPC", "EDQUOT", "EFBIG", "EIO"), ("EROFS", "EACCES", "EPERM")
ELSEWHERE = ("EEXIST", "ENOTDIR", "EISDIR", "ENAMETOOLONG", "ELOOP")  # something else is in the place
QUOTED = '''"data.path='my file, 2.txt'"'''
DISK = [getattr(errno, name) for name in (*FULL, *CLOSED, *ELSEWHERE) if hasattr(errno, name)]


def ending(error: Exception, folder: Path) -> tuple[str, int] | None:
    """What to say, and the status to exit with; None for an error that is a bug.

    Args:
        folder: the run's.
    """
    if isinstance(error, UserError):
        return str(error), 2
    if isinstance(error, HydraException | OmegaConfBaseException):
        if isinstance(error, OverrideParseException):
            return f"cannot read {error.override}: it takes key=value, special characters in quotes: {QUOTED}", 2
        lines = [first_line(each) for each in (error, error.__cause__) if each]
        return ": ".join(dict.fromkeys(lines)) + _hint(error), 2
    if isinstance(error, OSError) and not folder.exists():
        return f"the run's folder {folder} was moved or removed while the run was at work", 2
    if isinstance(error, OSError) and error.errno in DISK:
        return cannot_write(folder, error), 2
    if isinstance(error, NonFiniteError):
        return (
            f"{error}; what was saved before is in {folder}/checkpoints. A lower optimizer.lr, a longer"
            " optimizer.warmup_steps, trainer.gradient_clip_val=1 or trainer.precision=32-true may help"
        ), 1
    if is_out_of_memory(error):
        return (
            "out of memory: a smaller data.batch_size needs less, with trainer.accumulate_grad_batches= to make up for"
            " it, or a smaller model.block_size, or trainer.precision=bf16-mixed"
        ), 1
    return None


def cannot_write(folder: Path, error: OSError) -> str:
    return f"cannot write to the output folder {folder}: {error.strerror}; hydra.run.dir=... names another"


def _hint(error: Exception) -> str:
    """What may have been meant by a key, an option or a value that Hydra does not take."""
    if "Ambiguous value" in str(error):
        return "; -m trains a run for each of its values"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and "/" in error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if group == "data" and Path(option).exists():
            return f"; did you mean data=file data.path={option}?"
        return did_you_mean(option, options_of(group), f"{group}=")
    cause = error.__cause__
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and OmegaConf.is_dict(cause.parent_node):
        if str(cause.full_key) == "data.val_fraction":
            return "; the shares of the text are data.split=[0.9,0.1]"
        key, node = str(cause.key), cast("dict[str, Any]", OmegaConf.to_container(cause.parent_node))
        prefix = str(cause.full_key).removesuffix(key)
        for group in (name for name, values in node.items() if isinstance(values, dict) and key in values):
            return f"; did you mean {prefix}{group}.{key}?"
        return did_you_mean(key, node, prefix)
    return ""

"""Which of a run's processes this is, and who has started it.

Rank 0 has the folder, the log and the terminal. The others make no folder, write no log, and say nothing.
"""

import os
import time

from chargpt.errors import UserError

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")  # by which a process is told which one it is
LATE = 3.0  # seconds


def is_first() -> bool:
    """Whether this is the process of the run that speaks, as the variables say that it was started with."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


def arguments_of_rank(arguments: list[str]) -> list[str]:
    """The command line, with which no process but the first makes a folder or a log: each would have a time, and so a
    folder, of its own."""
    if is_first():
        return arguments
    goes_on = any(each.startswith("resume=") and each != "resume=null" for each in arguments)
    place = [] if goes_on else ["hydra.run.dir=."]  # which is there already
    return [*arguments, *place, f"++hydra.job_logging.handlers.file.filename={os.devnull}"]


def let_the_first_speak() -> None:
    """Wait before telling an error from before the processes know of one another. As a rule the first one tells the
    same, and whoever started them then ends this one."""
    if not is_first():
        time.sleep(LATE)


def launched() -> tuple[str, int] | None:
    """Who has started the processes of this run, and how many; None where that is left to us.

    Raises:
        UserError: the variables that say so are not numbers.
    """
    by = None
    if "TORCHELASTIC_RUN_ID" in os.environ:
        by = "torchrun", "WORLD_SIZE"
    elif "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in (
        "bash",
        "interactive",
    ):  # as Lightning has it
        by = "SLURM", "SLURM_NTASKS"
    if by is None:
        return None
    number = os.environ.get(by[1], "")
    if not number.isdecimal():
        raise UserError(f"{by[1]} is not a number of processes: {number!r}")
    return by[0], int(number)

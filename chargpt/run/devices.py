"""The processes of a run on several devices, one per device: who starts them, which one this is, how they end.

Rank 0 has the folder, the log and the terminal. The others make no folder, write no log and print nothing.
"""

import ctypes
import logging
import os
import re
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from chargpt import errors
from chargpt.command_line import STARTED_HERE, TOGETHER, launched_here
from chargpt.errors import UserError
from chargpt.run.folder import has_state

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

log = logging.getLogger("train")

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
SAVE = 3600  # seconds that a step and a save may take after a signal
LOST = "gloo.*(by peer|Broken pipe)|remote process exit"  # how gloo and NCCL report that another process ended
FIRST = 3.0  # seconds in which rank 0 reports an error that all ranks have, and then the others are ended


def is_first() -> bool:
    """Whether this is rank 0 of the run, or the process that starts the ranks."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


def launched() -> tuple[str, int] | None:
    """Who started the processes of this run, and how many; None if nobody did."""
    by = "torchrun", "WORLD_SIZE"
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        if "SLURM_NTASKS" not in os.environ or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
            return None  # in an interactive job, as in Lightning
        by = "SLURM", "SLURM_NTASKS"
    number = os.environ.get(by[1], "")
    if not number.isdecimal():
        raise UserError(f"{by[1]} is not a number of processes: {number!r}")
    return by[0], int(number)


def begin_rank() -> None:
    """Silence this process unless it is the first. If `launch` started it, it ends with the one that did (on Linux)."""
    logging.disable(logging.NOTSET if is_first() else logging.CRITICAL)
    if launched_here() and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.environ["TORCHELASTIC_RUN_ID"] != f"{STARTED_HERE}{os.getppid()}":
            sys.exit(128 + signal.SIGTERM)


def arguments_of_rank(arguments: list[str]) -> list[str]:
    """The command line, with which only rank 0 makes a folder, whose name may be the time, and a log."""
    if is_first():
        return arguments
    resumes = any(each.startswith("resume=") and each != "resume=null" for each in arguments)
    place = [] if resumes or launched_here() else ["hydra.run.dir=."]  # a folder that exists
    return [*arguments, *place, f"++hydra.job_logging.handlers.file.filename={os.devnull}"]


def number_of_devices(trainer: DictConfig) -> int:
    """How many devices of this machine `trainer.devices` means; 1 if Lightning will refuse it."""
    devices = trainer.get("devices")
    if OmegaConf.is_list(devices):
        return max(1, len(devices))
    text = str(devices).strip()
    if "," in text:
        return len([each for each in text.split(",") if each.strip()])
    if text in ("-1", "auto") and trainer.get("accelerator") in ("auto", "gpu", "cuda"):
        import torch

        return max(1, torch.cuda.device_count())
    return max(1, int(text)) if text.isdecimal() else 1


def to_start(cfg: DictConfig) -> int:
    """How many processes this one has to start for the run; 1: none, it trains itself."""
    trainer = cfg.trainer if OmegaConf.is_dict(cfg.trainer) else OmegaConf.create()
    if launched() or not is_first() or "LOCAL_RANK" in os.environ or trainer.get("num_nodes", 1) != 1:
        return 1
    return number_of_devices(trainer)


def launch(number: int, folder: Path) -> None:
    """Run this command once per device, in processes that torch starts and watches as torchrun does, and wait for them.
    Exits with their status unless all ended well.

    Args:
        folder: of the run.
    """
    import torch
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, start_processes

    from chargpt.run.config import in_hydras_quotes

    os.chdir(HydraConfig.get().runtime.cwd)
    spec = sys.modules["__main__"].__spec__
    script = [sys.argv[0]] if spec is None else ["-m", spec.name]
    command = (*script, *sys.argv[1:], f"hydra.run.dir={in_hydras_quotes(str(folder))}")
    # They meet at a store in this process, on a port that is free.
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    variables = {
        "TORCHELASTIC_RUN_ID": f"{STARTED_HERE}{os.getpid()}",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
        "GROUP_RANK": "0",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, torch.get_num_threads() // number)),
    }
    handled = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handled = [each for each in handled if signal.getsignal(each) != signal.SIG_IGN]  # nohup ignores SIGHUP
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ",".join(each.name for each in handled)
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").disabled = True  # it would report all twice
    context = None
    try:
        context = start_processes(
            "train",
            sys.executable,
            args=dict.fromkeys(range(number), command),
            envs={rank: {"RANK": str(rank), "LOCAL_RANK": str(rank), **variables} for rank in range(number)},
            logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        )
        result = context.wait(period=0.1)
    except SignalException as stop:
        handlers = {each: signal.signal(each, signal.SIG_IGN) for each in handled}
        log.warning(f"{stop.sigval.name}: stopping after this step (again: stop at once)")
        time.sleep(TOGETHER)
        for each, handler in handlers.items():
            signal.signal(each, handler)
        kill = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows lacks it
        for signum in (signal.SIGTERM, kill):  # by SIGTERM, a process that is still starting ends silently
            with suppress(SignalException):
                if context is not None:
                    context.close(signum, SAVE)
        sys.exit(128 + stop.sigval)
    if result is None or not result.failures:
        return
    rank, failure = next(iter(result.failures.items()))  # the first to be noticed
    status = failure.exitcode
    if status in (1, 2, 129, 130, 143):  # it has reported why
        sys.exit(status)
    how = f"was killed ({failure.signal_name()})" if status < 0 else f"ended with status {status}"
    log.error(f"error: process {rank} of the {number} of this run {how}; {how_to_resume(folder)}")
    sys.exit(1)


def how_to_resume(folder: Path) -> str:
    """The end of a message about a run that did not finish."""
    from chargpt.run.resume import command_to_resume

    return f"to resume: {command_to_resume(folder)}" if has_state(folder) else "nothing was saved"


def check_number(trainer: "Trainer") -> None:
    """Refuse devices that are not the processes that were started: the others would be waited for, or train alone."""
    devices = f"trainer.devices={trainer.num_devices} trainer.num_nodes={trainer.num_nodes}"
    by = launched()
    if by is not None and by[1] != trainer.world_size:
        raise UserError(
            f"{by[0]} has started {by[1]} process{'es' * (by[1] != 1)} for this run, one per device, but {devices}"
            f" makes {trainer.world_size}: set trainer.devices= and trainer.num_nodes= that make {by[1]}"
        )
    if by is None and trainer.num_nodes > 1 and "NODE_RANK" not in os.environ:
        raise UserError(f"trainer.num_nodes={trainer.num_nodes} takes srun or torchrun, which start the processes")
    if is_first() != trainer.is_global_zero:
        ranks = " ".join(f"{name}={os.environ[name]}" for name in RANKS if name in os.environ)
        raise UserError(f"this process was started with {ranks}, which does not go with {devices}")


def report(error: Exception) -> int:
    """Log an error once for all processes of the run; returns the exit status."""
    if launched() is None:
        return errors.report(error)
    lost = re.search(LOST, str(error))
    if lost and launched_here():
        time.sleep(FIRST)  # meanwhile `launch` reports the process that ended first, and ends this one
    elif lost and is_first():
        folder = Path(HydraConfig.get().runtime.output_dir)
        log.error(f"error: another process of this run ended unexpectedly; {how_to_resume(folder)}")
        return 1
    if not is_first():
        time.sleep(FIRST)
        logging.disable(logging.NOTSET)
    return errors.report(error)

"""The processes of a run on several devices, one per device: who starts them, which one this is, how they end.

Rank 0 creates the folder and does all logging; the other ranks log only errors. (Lightning's own launcher leaves the
other ranks waiting when one is killed, and stops without a save at a signal.)
"""

import ctypes
import logging
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from chargpt import errors
from chargpt.command_line import STARTED_HERE, TOGETHER, launched_here
from chargpt.errors import UserError
from chargpt.run.config import in_hydras_quotes
from chargpt.run.folder import has_state
from chargpt.run.resume import command_to_resume

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

log = logging.getLogger("train")

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
SAVE_TIMEOUT = 3600  # seconds that a step and a save may take after a signal
PEER_DIED = "gloo.*(by peer|Broken pipe)|remote process exit"  # how gloo and NCCL report that another process ended
OTHERS_WAIT = 10.0  # seconds before other ranks report: usually rank 0 reports the same error first


def is_first() -> bool:
    """Whether this is rank 0 of the run, or the process that starts the ranks."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)


def launched() -> int | None:
    """The number of processes that torchrun or SLURM started for this run; None without either, and in an interactive
    job, as in Lightning."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    if "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        return int(os.environ["SLURM_NTASKS"])
    return None


def begin_rank() -> None:
    """Silence this process unless it is rank 0. On Linux it gets SIGTERM when the process that launched it dies."""
    logging.disable(logging.NOTSET if is_first() else logging.CRITICAL)
    if launched_here() and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if f"{STARTED_HERE}{os.getppid()}" != os.environ["TORCHELASTIC_RUN_ID"]:  # it has died already
            sys.exit(143)


def arguments_of_rank(arguments: list[str]) -> list[str]:
    """The arguments of this rank. Unless the folder is fixed, only rank 0 has one, and a log: its default name has the
    time, which differs between ranks."""
    folders = [each for each in arguments if each.startswith("hydra.run.dir=") and "${" not in each]
    if is_first() or folders:
        return arguments
    return [*arguments, "hydra.run.dir=.", f"++hydra.job_logging.handlers.file.filename={os.devnull}"]


def number_of_devices(trainer: DictConfig) -> int:
    """The number of devices of this machine that `trainer.devices` asks for; 1 if Lightning will refuse it."""
    devices = trainer.get("devices")
    text = ",".join(map(str, [*devices, ""])) if OmegaConf.is_list(devices) else str(devices).strip()
    if "," in text:  # which devices; "3," is the fourth one alone
        return len(text.strip(", ").split(","))
    if text in ("-1", "auto") and trainer.get("accelerator") in ("auto", "gpu", "cuda"):
        import torch

        return max(1, torch.cuda.device_count())
    return max(1, int(text)) if text.isdecimal() else 1


def to_start(cfg: DictConfig) -> int:
    """The number of processes to start for the run; 1: none, this process trains."""
    return 1 if launched() or not is_first() or cfg.trainer.get("num_nodes", 1) != 1 else number_of_devices(cfg.trainer)


def launch(number: int, folder: Path) -> None:
    """Train the run of a folder: run this command once per device, in processes that torch starts and watches as
    torchrun does, and wait for them. Exits with their status unless all succeed."""
    import torch
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, start_processes

    os.chdir(HydraConfig.get().runtime.cwd)
    spec = sys.modules["__main__"].__spec__
    script = [sys.argv[0]] if spec is None else ["-m", spec.name]
    command = (*script, *sys.argv[1:], f"hydra.run.dir={in_hydras_quotes(str(folder))}")
    # They meet at a store in this process, on a free port.
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    variables = {
        "TORCHELASTIC_RUN_ID": f"{STARTED_HERE}{os.getpid()}",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": str(number),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, torch.get_num_threads() // number)),
    }
    under_nohup = hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGINT,SIGTERM" + ("" if under_nohup else ",SIGHUP")
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").disabled = True  # it would report all twice
    context, stopped = None, 0
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
        log.warning(f"{stop.sigval.name}: stopping after this step (again: stop at once)")
        stopped, result = 128 + stop.sigval, _close(context) if context is not None else None
    _end(result.failures if result is not None else {}, stopped, number, folder)


def _close(context: Any) -> Any:
    """Have the processes end after their step, or at once after another signal; returns how they ended."""
    from torch.distributed.elastic.multiprocessing import SignalException

    since, limit = time.monotonic(), SAVE_TIMEOUT
    while True:
        try:
            context.close(timeout=limit)  # by SIGTERM, and then by SIGKILL
            return context.wait(period=0.1)
        except SignalException:
            limit = SAVE_TIMEOUT if time.monotonic() - since < TOGETHER else 0


def _end(failed: dict[int, Any], stopped: int, number: int, folder: Path) -> None:
    """Exit with the status of the processes, which have ended, unless all succeeded; report one that was killed.

    `failed` has what torch knows of those that failed, by rank, the first to fail first; `stopped` is the status after
    a signal to this process, or 0."""
    if stopped:
        status = failed[0].exitcode if 0 in failed else 0
        sys.exit(status if status in (1, 2) else stopped)  # rank 0 may have failed to save
    for rank, failure in failed.items():
        code = failure.exitcode
        if code in (1, 2, 129, 130, 143):  # reported by the process
            sys.exit(code)
        how = f"was killed ({failure.signal_name()})" if code < 0 else f"ended with status {code}"
        log.error(f"error: process {rank} of the {number} of this run {how}; {how_to_resume(folder)}")
        sys.exit(1)


def how_to_resume(folder: Path) -> str:
    """The end of a message about a run that did not finish."""
    return f"to resume: {command_to_resume(folder)}" if has_state(folder) else "nothing was saved"


def check_number(trainer: "Trainer") -> None:
    """Refuse devices that do not match the processes: the missing ones would be waited for, or each train alone."""
    number, devices = launched() or 1, f"trainer.devices={trainer.num_devices} trainer.num_nodes={trainer.num_nodes}"
    if number != trainer.world_size:
        needed = f"{devices} needs {trainer.world_size} processes, one per device"
        raise UserError(f"{needed}, but {number} started; srun and torchrun start those of several nodes")


def report(error: Exception) -> int:
    """Log an error once for all processes of the run; returns the exit status."""
    if launched() is None:
        return errors.report(error)
    if re.search(PEER_DIED, str(error)):  # the process that ended has reported, or its launcher does
        if is_first() and not launched_here():  # torchrun and SLURM do not print the command
            folder = Path(HydraConfig.get().runtime.output_dir)
            log.error(f"error: another process of this run ended unexpectedly; {how_to_resume(folder)}")
        else:
            time.sleep(OTHERS_WAIT)
        return 1
    if not is_first():
        time.sleep(OTHERS_WAIT)
    logging.disable(logging.NOTSET)
    return errors.report(error)

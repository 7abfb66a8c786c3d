"""Runs train.py and sample.py many times at the cost of one start: a process of its own, which only forks.

It imports what both scripts need, then reads one request per line from standard input (JSON), runs the script in a fork
as `__main__`, and answers with one line. The fork ends as a Python process would: with the same status, and the
traceback of an error that nobody caught. `Forks` is the other end of the line.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LATE = (  # what is imported only when it is needed
    "hydra._internal.config_loader_impl",
    "hydra._internal.hydra",
    "hydra.main",
    "lightning.pytorch.loggers",
    "pooch",
    "safetensors.torch",
    "tensorboard.plugins.hparams.summary_v2",
    "torch.utils.tensorboard",
)
AS_TESTED = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}  # the environment of every script
FILE_LIMIT = 256 << 20  # bytes per file
OUTLIVES = 5.0  # seconds that a process has to end after the one that started it


class Forks:
    """A server, and how to ask it. There is one for all that a process tests: `forks()`."""

    def __init__(self) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.server = subprocess.Popen([sys.executable, __file__], env=os.environ | AS_TESTED, **pipes)
        assert json.loads(self.server.stdout.readline()) == {"ready": True}

    def run(
        self,
        script: str,
        *arguments: str,
        cwd: Path,
        environment: dict[str, str],
        streams: list[Path],
        seconds: float,
        stop_after: float | None = None,
        memory: int | None = None,
    ) -> dict[str, Any]:
        """What `run` below has to say of a script that was run.

        Args:
            streams: what it reads as standard input, and where its output and its errors go.
            seconds: until it is killed.
            stop_after: seconds until Ctrl-C.
            memory: bytes that it may map beyond what all begin with; its files and its time have a limit, too, then.
        """
        request = {"script": script, "arguments": arguments, "environment": environment, "cwd": str(cwd)}
        request |= {"seconds": seconds, "stop_after": stop_after, "memory": memory}
        request |= {"streams": [str(stream) for stream in streams]}
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait(60)
        self.server.stdout.close()


@functools.cache
def forks() -> Forks:
    one = Forks()
    atexit.register(one.close)
    return one


def import_all() -> None:
    """What the scripts import, and what these import late; nothing is run, so that each fork begins afresh."""
    sys.path[:1] = [str(ROOT), str(ROOT / "tests")]  # the second so that a pickle finds the classes of attacks.py
    import torch

    import chargpt

    ours = [module.name for module in pkgutil.walk_packages(chargpt.__path__, "chargpt.")]
    for module in (*LATE, *ours):
        importlib.import_module(module)

    torch.set_num_threads(1)


def serve() -> None:
    import_all()
    gc.collect()
    gc.freeze()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


@functools.cache
def memory_of_a_fork() -> int:
    """Bytes that a fork has at its start: not those of the libraries' files that it has not touched yet."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    return os.wait4(child, 0)[2].ru_maxrss * 1024


def run(request: dict) -> dict:
    """Fork, wait for the end, and kill what is still there after `seconds`; SIGINT comes after `stop_after`, if given.

    Returns:
        status: as subprocess has it, negative for a signal; seconds: how long it took; late: whether it was killed;
        left: whether processes that it had started outlived it; memory: bytes that it had at its peak beyond what it
        was forked with.
    """
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            become(request, mapped)
        finally:
            os._exit(250)  # nothing comes back from there
    with contextlib.suppress(OSError):  # it does so itself: whoever is first
        os.setpgid(child, child)
    alive = os.pidfd_open(child)

    def ended(seconds: float) -> bool:
        return bool(select.select([alive], [], [], max(0.0, seconds - (time.monotonic() - began)))[0])

    late = True  # also where Ctrl-C ends the tests
    try:
        if request["stop_after"] is not None and not ended(request["stop_after"]):
            os.kill(child, signal.SIGINT)
        late = not ended(request["seconds"])
    finally:
        seconds = time.monotonic() - began
        if late:
            kill_group(child)
        _, status, usage = os.wait4(child, 0)
        left = kill_group(child, wait=0.0 if late else OUTLIVES)
        os.close(alive)
    return {
        "status": os.waitstatus_to_exitcode(status),
        "seconds": seconds,
        "late": late,
        "left": left,
        "memory": usage.ru_maxrss * 1024 - memory_of_a_fork(),
    }


def kill_group(group: int, wait: float = 0.0) -> bool:
    """Kill the processes of a group that are still there after some seconds; whether there were any."""
    end = time.monotonic() + wait
    try:
        while time.monotonic() < end:
            os.killpg(group, 0)
            time.sleep(0.02)
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def become(request: dict, mapped: int) -> None:
    """Turn this fork into a Python process that runs the script, and end it."""
    import resource  # which Windows lacks, where this module is imported, too

    os.setpgid(0, 0)
    for fd, (name, flags) in enumerate(zip(request["streams"], (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY), strict=True)):
        opened = os.open(name, flags)
        os.dup2(opened, fd)
        os.close(opened)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if request["memory"] is not None:
        resource.setrlimit(resource.RLIMIT_AS, (mapped + request["memory"],) * 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (int(request["seconds"]) + 5,) * 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    script = os.path.join(ROOT, request["script"])
    sys.argv = [script, *request["arguments"]]
    sys.path[0] = os.path.dirname(script)
    status = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException:
        status = 1
        sys.excepthook(*sys.exc_info())
    with contextlib.suppress(Exception):
        threading._shutdown()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OSError:
        status = status or 120  # as Python has it
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(status & 0xFF)


if __name__ == "__main__":
    serve()

"""The processes of one run, one per device: how they are started, and what becomes of the others when one dies."""

import contextlib
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig

from chargpt.errors import Stopped, UserError, escape, tell
from chargpt.run.folder import has_state
from chargpt.run.launched import LATE, RANKS, is_first, launched
from chargpt.run.stored import command_to_go_on

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

log = logging.getLogger("train")
InWords = Callable[[Exception, Path], tuple[str, int, bool]]  # what to say, the status, and whether it is a bug

PARENT = "CHARGPT_PARENT"  # who started this process, if that was rank 0 of the run
GRACE = 10.0  # seconds that rank 0 has to end by itself once another one has died: it may be at a save
WORD = 1.0  # seconds that a word may take, the first or the last
CALLS = 60.0  # seconds in which all have to call rank 0, once all are there


def check_number(trainer: "Trainer") -> None:
    """Refuse devices that are not the processes that were started: some would be waited for, or train runs of their
    own.

    Raises:
        UserError: they are not.
    """
    devices = f"trainer.devices={trainer.num_devices} trainer.num_nodes={trainer.num_nodes}"
    by = launched()
    if by is not None and by[1] != trainer.world_size:
        raise UserError(
            f"{by[0]} has started {by[1]} process{'es' * (by[1] != 1)} for this run, one per device, but {devices}"
            f" makes {trainer.world_size}: say trainer.devices= and trainer.num_nodes= that make {by[1]}"
        )
    environment = getattr(trainer.strategy, "cluster_environment", None)
    ours = environment is not None and not environment.creates_processes_externally
    if ours and trainer.num_nodes > 1 and not {"NODE_RANK", "GROUP_RANK"} & os.environ.keys():
        raise UserError(
            f"trainer.num_nodes={trainer.num_nodes} takes somebody to start the processes of all nodes, such as srun or"
            " torchrun"
        )
    if is_first() != trainer.is_global_zero:
        said = " ".join(f"{name}={os.environ[name]}" for name in RANKS if name in os.environ)
        raise UserError(f"this process was started with {said}, which does not go with {devices}")


class Ranks:
    """What the processes of a run know of one another: each has a line to rank 0, which the system cuts when either end
    dies, however it does.

    Args:
        trainer: of the run, before it is fitted.
        folder: the run's, in rank 0.
    """

    def __init__(self, trainer: "Trainer", folder: Path):
        self.trainer, self.folder = trainer, folder
        self.rank, self.size = trainer.global_rank, trainer.world_size
        self._children: list[subprocess.Popen] = []
        self._lines: dict[int, socket.socket] = {}  # to the other ranks, or to rank 0
        self._listeners: list[threading.Thread] = []
        self._finished: set[int] = set()  # the ranks that have said that they are
        self._lost = threading.Event()  # another one has died, which is told; or this one is at its end
        self._lock = threading.Lock()
        self._status = 1
        self._ending = False
        self._signal: int | None = None

    def begin(self) -> None:
        """Start the other processes, unless somebody else has, and wait until all are there."""
        self._handler = signal.signal(signal.SIGTERM, self._on_signal)
        threading.Thread(target=self._look_after_signal, daemon=True).start()
        environment = self.trainer.strategy.cluster_environment  # type: ignore[attr-defined]
        if not environment.creates_processes_externally:
            self._start(environment.main_port)
        elif PARENT in os.environ and os.name == "posix":
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # one that was held is none any more
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
            parent = int(os.environ[PARENT])
            threading.Thread(target=self._look_after_parent, args=(parent,), daemon=True).start()
        self.trainer.strategy.setup_environment()
        self._call()
        for each in self._lines.items():
            self._listeners.append(threading.Thread(target=self._listen, args=each, daemon=True))
            self._listeners[-1].start()

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._signal = signum

    def _look_after_signal(self) -> None:
        """End this process some seconds after SIGTERM. Launchers send it to those that are left when one has died,
        which is still to be told."""
        while self._signal is None:
            if self._lost.wait(0.2):
                return
        if not self._lost.wait(LATE) and not self._ending:
            self._say({"status": 128 + self._signal, "said": ""})
            os._exit(128 + self._signal)

    def _start(self, port: int) -> None:
        """Start the other processes of this machine by the same command, as Lightning would, but that one kills all
        without a word when one has died."""
        address, here = os.environ.get("MASTER_ADDR", "127.0.0.1"), HydraConfig.get().runtime.cwd
        os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port), "LOCAL_RANK": "0", PARENT: str(os.getpid())}
        spec = sys.modules["__main__"].__spec__
        command = [os.path.join(here, sys.argv[0])] if spec is None else ["-m", spec.name]
        with _ctrl_c_held():
            for n in range(1, self.trainer.num_devices):
                started = [sys.executable, *command, *sys.argv[1:]]
                self._children.append(subprocess.Popen(started, env=os.environ | {"LOCAL_RANK": str(n)}, cwd=here))
        threading.Thread(target=self._look_after_children, daemon=True).start()

    # These two are for what the lines cannot show: the time before there are any, and a process whose loader workers
    # outlive it for a while, and with them its end of the line.

    def _look_after_children(self) -> None:
        while not self._lost.wait(0.2):
            for rank, child in enumerate(self._children, self.rank + 1):
                if child.poll() and rank not in self._finished and not self._lost.wait(WORD):
                    self._lose(rank, None)

    def _look_after_parent(self, parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        time.sleep(WORD)
        self._lose(0, None)

    def _call(self) -> None:
        """Make the lines."""
        address = os.environ["MASTER_ADDR"]  # the first one's
        secret, server = secrets.token_hex(16), None
        if self.rank == 0:
            server = socket.create_server((address if address in ("127.0.0.1", "localhost") else "", 0))
            server.settimeout(CALLS)
        port, secret, folder = self.trainer.strategy.broadcast(
            (server.getsockname()[1] if server else 0, secret, str(self.folder))
        )
        self.folder = Path(folder)
        if server is None:
            self._lines[0] = line = socket.create_connection((address, port), timeout=CALLS)
            line.sendall(f"{secret} {self.rank:10}".encode())
            line.settimeout(None)
            return
        with server:
            while len(self._lines) < self.size - 1:
                line, _ = server.accept()
                rank = rank_that_calls(line, secret)
                if rank is None:
                    line.close()
                else:
                    self._lines[rank] = line

    def _listen(self, rank: int, line: socket.socket) -> None:
        """Wait for another process's last word, or for its death."""
        heard = b""
        with contextlib.suppress(OSError):
            line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a machine that is gone cuts no line
            for name, seconds in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
                if hasattr(socket, name):
                    line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
            while not heard.endswith(b"\n") and (more := line.recv(1 << 16)):
                heard += more
        word = json.loads(heard) if heard.endswith(b"\n") else None
        if word is not None and not word["status"]:
            self._finished.add(rank)
        else:
            self._lose(rank, word)

    def _lose(self, rank: int, word: dict | None) -> None:
        """Tell that a process has ended, and see that this one does, too.

        Args:
            word: its last one, if it had any: the `status` that it ended with and what there is to be `said`.
        """
        with self._lock:
            if self._lost.is_set():
                return
            if word is not None:
                self._status = word["status"]
            with contextlib.suppress(Exception):  # that all end matters more than what is told
                if self.rank == 0:
                    log.error(word["said"] if word is not None and word["said"] else self._without_a_word(rank, word))
                elif word is None and self.rank == 1:  # rank 0 is gone: somebody has to tell
                    tell(self._without_a_word(rank, word))
            self._lost.set()
        self._say({"status": self._status, "said": ""})
        if self.rank == 0:
            time.sleep(GRACE)
            self._end_children(0)
        os._exit(self._status)  # what waits for another process on a GPU may do so for long

    def _without_a_word(self, rank: int, word: dict | None) -> str:
        how = "ended unexpectedly" if word is None else f"ended with status {word['status']}"
        go_on = f"to go on: {command_to_go_on(self.folder)}" if has_state(self.folder) else "nothing was saved"
        return f"error: another process of this run (rank {rank} of {self.size}) {how}; {go_on}"

    def _say(self, word: dict) -> bool:
        """One's last word to those at the other ends; whether all lines took it."""
        content, taken = json.dumps(word).encode() + b"\n", True
        for line in self._lines.values():
            try:
                line.sendall(content)
            except OSError:
                taken = False
        return taken

    def end(self, error: BaseException | None, in_words: InWords) -> None:
        """Leave the others, for the reason that ended this process's part.

        Raises:
            SystemExit: another one has died, which is told, or this one has, which rank 0 tells.
        """
        self._ending = True
        try:
            self._end(error, in_words)
        finally:
            for line in self._lines.values():
                line.close()
            signal.signal(signal.SIGTERM, self._handler)

    def _end(self, error: BaseException | None, in_words: InWords) -> None:
        told, status, is_bug = in_words(error, self.folder) if isinstance(error, Exception) else ("", 0, False)
        asked = isinstance(error, SystemExit) and not isinstance(error, Stopped)
        if is_bug or asked:  # what waits for a dead process fails in ways of its own
            self._lost.wait(LATE)
        with self._lock:  # who speaks now has finished
            lost = self._lost.is_set()
            self._lost.set()
        if lost:
            self._end_children(GRACE)
            raise SystemExit(self._status) from None
        if error is None or isinstance(error, Stopped):  # as all others do
            self._say({"status": 0, "said": ""})
            for listener in self._listeners:
                listener.join(GRACE)
            self._end_children(GRACE)
            return
        if not isinstance(error, Exception):
            status = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 130
        said = f"error: {told}" if told else ""
        if is_bug:
            said = escape("".join(traceback.format_exception(error))) + said
        taken = self._say({"status": status, "said": said if self.rank else ""})
        self._end_children(GRACE if self._lines else 0)  # without a line they would wait for this process
        if self.rank:
            if not taken and said:
                tell(said)
            raise SystemExit(status) from None

    def _end_children(self, seconds: float) -> None:
        """Wait for the processes that this one has started, and end those that are still there then."""
        until = time.monotonic() + seconds
        for child in self._children:
            try:
                child.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()


@contextlib.contextmanager
def _ctrl_c_held() -> Iterator[None]:
    """Inside, Ctrl-C waits; in processes that are started inside, until they are ready. A terminal sends it to all of
    them, and before they train rank 0 alone has to do with it."""
    if os.name != "posix":
        yield
        return
    came: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda signum, frame: came.append(signum))  # another thread may take it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # which those that are started inherit
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)


def rank_that_calls(line: socket.socket, secret: str) -> int | None:
    """The rank of the process at the other end; None for one that does not know the secret, or says nothing."""
    line.settimeout(WORD)
    word, length = b"", len(secret) + 11
    with contextlib.suppress(OSError):
        while len(word) < length and (more := line.recv(length - len(word))):
            word += more
    known, _, rank = word.partition(b" ")
    if not secrets.compare_digest(known, secret.encode()):
        return None
    line.settimeout(None)
    return int(rank)


@contextlib.contextmanager
def together(trainer: "Trainer", folder: Path, in_words: InWords) -> Iterator[None]:
    """Inside, all processes of the run are at work: when one dies, all end within seconds, and one of them tells why.

    Args:
        trainer: of the run, before it is fitted. With a single device there is nothing to do.
        folder: the run's.
        in_words: what there is to say of an error, in a run of that folder.

    Raises:
        UserError: the devices are not the processes that were started.
        SystemExit: this process has to end, for a reason that is told.
    """
    if HydraConfig.initialized():
        check_number(trainer)
    if trainer.world_size == 1 or not HydraConfig.initialized():  # what is not train.py, Lightning starts
        yield
        return
    ranks, error = Ranks(trainer, folder), None
    try:
        ranks.begin()
        yield
    except BaseException as raised:
        error = raised
        raise
    finally:
        ranks.end(error, in_words)

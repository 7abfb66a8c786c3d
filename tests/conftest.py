"""A small text, a run on it, and a cache for the tests."""

import logging
import signal
from pathlib import Path

import pytest
import torch
from helpers import TINY, start
from hypothesis import settings
from tensorboard.summary.writer import event_file_writer

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")


def pytest_collection_modifyitems(items):
    """Slow tests first, so that both test processes end at about the same time."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Models this small are fastest on one, above all on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def signals_are_not_ignored():
    """nohup ignores a hangup and a script's background ignores Ctrl-C, and child processes inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):  # Windows lacks it
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def event_files_in_order():
    """TensorBoard reads a run's event files by name, which ends in their number in the process: 10 before 9."""
    event_file_writer._global_uid = event_file_writer.AtomicCounter(1_000_000)


@pytest.fixture(scope="session", autouse=True)
def errors_on_standard_error():
    """Pytest's handlers replace logging's last resort."""
    logging.getLogger("chargpt.errors").addHandler(logging.lastResort)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """No test reads or writes the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    """A few kilobytes of English."""
    file = tmp_path_factory.mktemp("text") / "verse.txt"
    lines = [f"{n} green bottles hanging on the wall, and {n * 7 % 13} fell.\n" for n in range(100)]
    file.write_text("".join(lines), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def tiny(text_file) -> list[str]:
    """Overrides that make any configuration train for half a second on the small text."""
    return [*TINY, f"data.path={text_file}"]


@pytest.fixture(scope="session")
def tiny_run(tiny, tmp_path_factory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    start(folder, *tiny)
    return folder


@pytest.fixture(scope="session")
def bytes_run(tiny, tmp_path_factory) -> Path:
    """The folder of a finished run on bytes that are not UTF-8, with a test part."""
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "latin.txt").write_bytes("naïve façade, 5 €\r\n".encode("cp1252") * 60 + b"\0\xff")
    start(folder / "run", *tiny, f"data.path={folder}/latin.txt", "data.tokenizer=bytes", "data.split=[0.8,0.1,0.1]")
    return folder / "run"

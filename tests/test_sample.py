"""`sample.py` as a person runs it."""

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, bigram, run_fresh

import sample
from chargpt.errors import NonFiniteError
from chargpt.tokenizer import ByteTokenizer
from sample import until


@pytest.fixture
def run(tiny_run, capsys):
    """In this process, for speed: the exit status, and what was written to standard output and standard error."""

    def run(*arguments, ckpt=tiny_run):
        status = sample.main([*(["--ckpt", str(ckpt)] if ckpt else []), "--device", "cpu", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def split(out):
    return re.split(r"--- sample \d of 3 ---\n", out)


def test_seeds_differ_and_zero_temperature_does_not(run):
    def text(*arguments):
        return run("--max-new-tokens", "60", *arguments)[1]

    assert text("--seed", "1") != text("--seed", "2")
    assert text() != text()
    assert text("--seed", "1", "--temperature", "0") == text("--seed", "2", "--temperature", "0")
    assert text("--seed", "1", "--top-k", "1") == text("--temperature", "0") == text("--top-p", "1e-9")


def test_a_stopped_text_leaves_the_others_alone(run):
    arguments = ("--num-samples", "3", "--max-new-tokens", "40", "--seed", "1", "--prompt", "on")
    _, *whole = split(run(*arguments)[1])
    assert [len(text) for text in whole] == [43] * 3
    assert len(set(whole)) == 3
    stop = whole[0][5:9]
    _, *cut = split(run(*arguments, "--stop", stop)[1])
    assert cut == [text[: text.index(stop)] + "\n" if stop in text else text for text in whole]
    assert len(cut[0]) < len(whole[0])


def test_prompts(run, tmp_path, monkeypatch):
    (tmp_path / "prompt.txt").write_text("3 green")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"3 green")))
    prompts = [("--prompt", "3 green"), ("--prompt-file", tmp_path / "prompt.txt"), ("--prompt-file", "-")]
    prompts.append(("--prompt", "3 gre€en", "--unknown", "skip"))
    texts = [run("--max-new-tokens", "9", "--seed", "1", *prompt)[1] for prompt in prompts]
    assert texts == texts[:1] * 4


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_bytes_that_come_in_parts(size):
    """Whole characters, and nothing lost at the end; a terminal gets those that are not UTF-8 as U+FFFD."""
    content = "naïve 道\U0001f600".encode() + b"\xff\xe9\x81"
    parts = [list(content[at : at + size]) for at in range(0, len(content), size)]
    for to_terminal, errors in ((True, "replace"), (False, "surrogateescape")):
        text = "".join(sample.decoded(parts, ByteTokenizer(), to_terminal=to_terminal))
        assert text == content.decode(errors=errors)


def test_a_model_of_bytes_reads_and_writes_any_bytes(run, tmp_path):
    order = [0, 255, 0xC3, 0xA9, 128, 10, 13, 0]
    (tmp_path / "seed.bin").write_bytes(bytes(order[:2]))
    arguments = ("--prompt-file", tmp_path / "seed.bin", "--out", tmp_path / "out.bin", "--temperature", "0")
    assert run(*arguments, "--max-new-tokens", "12", ckpt=bigram(tmp_path / "a.ckpt", None, order))[0] == 0
    assert (tmp_path / "out.bin").read_bytes() == bytes(order[:-1] * 2) + b"\n"
    status, _, err = run("--prompt-file", tmp_path / "seed.bin")
    assert (status, err) == (2, "error: the prompt is not UTF-8 at byte offset 1\n")


def test_cr_lf_in_a_prompt_and_in_a_stop_is_a_new_line(run, tmp_path):
    (tmp_path / "prompt.txt").write_bytes(b"b\r\n")  # as Notepad writes it
    arguments = ("--prompt-file", tmp_path / "prompt.txt", "--temperature", "0", "--max-new-tokens", "9")
    checkpoint = bigram(tmp_path / "a.ckpt", "\nab", "\nab\n")
    assert run(*arguments, "--stop", "b\r\n", ckpt=checkpoint)[1] == "b\na\n"


@pytest.mark.parametrize(
    ("stop", "text", "expected"),
    [
        ("", "abc", "abc"),
        ("b", "abc", "a"),
        ("aab", "aaab!", "a"),
        ("abac", "ababac!", "ab"),
        ("xyz", "wxyxyz", "wxy"),
        ("xyz", "wxy", "wxy"),
    ],
)
def test_until(stop, text, expected):
    assert "".join(until(list(stop), iter(text))) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stop", "Q"], r"--stop has characters outside the vocabulary: 'Q' \(U\+0051\)"),
        (["--prompt", "7 gréen€"], r"the prompt has characters outside the vocabulary: 'é' \(U\+00E9\), '€'"),
        (["--prompt", r"\n"], r"the prompt has .*: '\\\\' \(U\+005C\); for a new line, type \$'\\n' .* --prompt-file"),
        (["--top-k", "many"], "argument --top-k: invalid int value: 'many'"),
        (["--device", "gpu9"], "cannot use the device gpu9"),
        (["--prompt-file", "no/such/file"], "No such file or directory: no/such/file"),
        (["--out", "no/such/file"], "cannot write to no/such/file: No such file"),
        (["--out", "/dev/full"], "cannot write to /dev/full: No space left on device"),
        (["--ckpt", "a\x1b]52;\n\u2028\udcff"], r"no such checkpoint or run: a\\x1b\]52;\\n\\u2028\\udcff$"),
        (["--prompt", os.fsdecode(b"\xff")], "the prompt is not UTF-8 at byte offset 0"),
        (["--prompt", "a", "--prompt-file", "-"], "argument --prompt-file: not allowed with argument --prompt"),
        (["--nonsense", "\x1b"], r"unrecognized arguments: --nonsense \\x1b"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run, arguments, message):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert re.match(f"error: {message}", err)
    assert len(err.splitlines()) == 1


def test_runs_and_files_by_other_names(tiny_run, run, tmp_path, monkeypatch):
    """As the shell leaves them in `--ckpt=~/run`, and the newest run."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert run(ckpt=None)[2].startswith("error: no run in outputs/")
    shutil.copytree(tiny_run, "outputs/day/run")
    arguments = ("--max-new-tokens", "5", "--seed", "1")
    assert run(*arguments, "--out=~/text.txt", ckpt="~/outputs/day/run") == (0, "", "")
    newest = Path("outputs", "day", "run", "checkpoints", "best.ckpt")
    text = Path("text.txt").read_text(encoding="utf-8")
    assert run(*arguments, ckpt=None) == (0, text, f"The newest run: {newest}\n")


def test_an_error_before_the_first_character_leaves_the_file(run, tmp_path, monkeypatch):
    def fail(*_):
        raise NonFiniteError("not finite")
        yield

    monkeypatch.setattr("chargpt.generation.generate", fail)
    (tmp_path / "out.txt").write_text("kept")
    assert run("--out", tmp_path / "out.txt") == (1, "", "error: not finite\n")
    assert (tmp_path / "out.txt").read_text() == "kept"


@pytest.mark.processes
def test_full_and_closed_streams(tiny_run, tmp_path):
    def redirected(redirections, out=""):
        command = f"{sys.executable} sample.py --ckpt '{tiny_run}' --max-new-tokens 5 {out} {redirections}"
        done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    assert redirected(">/dev/full") == (2, "error: cannot write to standard output: No space left on device\n")
    assert redirected("<&- >&- 2>&-", out=f"--out '{tmp_path}/text.txt'") == (0, "")
    assert len((tmp_path / "text.txt").read_text()) == 6
    assert redirected(">&-") == redirected("2>&- >/dev/null") == (0, "")
    assert redirected("<&- >&- 2>&-", out="--top-k 0") == (2, "")


@pytest.mark.parametrize(
    ("characters", "order", "shown"),
    [
        ("\t\n\x1b]a\x9b\u202e", "a\x1b]\x9b\u202e\t\na", "a\\x1b]\\x9b\\u202e\t\n" * 2),
        ("\n\ra", "a\r\na", "a\n" * 2),  # CR LF is a line break
    ],
)
def test_a_terminal_is_not_commanded(characters, order, shown, run, tmp_path, monkeypatch):
    """Control characters are escaped there, and written as they are into files."""
    arguments = ("--prompt", "a", "--temperature", "0", "--max-new-tokens", 2 * len(order) - 3)
    path = bigram(tmp_path / "a.ckpt", characters, order)
    assert run(*arguments, ckpt=path)[1] == 2 * order[:-1] + "\n"
    master, terminal = os.openpty()
    with open(terminal, "w") as stdout, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", stdout)
        assert run(*arguments, ckpt=path)[0] == 0
    found = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while part := os.read(master, 10_000):
            found += part
    os.close(master)
    assert found.decode().replace("\r\n", "\n") == shown + "\n"


@pytest.mark.processes
def test_a_fresh_process(run, tmp_path):
    """Writes what this one does, as UTF-8 in any locale, each character before the next one is there."""
    checkpoint = bigram(tmp_path / "a.ckpt", "".join(sorted("道🫠é\u0301")))
    arguments = ("--ckpt", str(checkpoint), "--prompt", "道", "--seed", "1")
    environment = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = run_fresh("sample.py", *arguments, "--device", "cpu", env=environment)
    assert (done.returncode, done.stdout, done.stderr) == run(*arguments, ckpt=None)
    assert set(done.stdout) == {*"道🫠é\u0301\n"}
    assert len(done.stdout) == 1 + 500 + 1
    command = [sys.executable, "sample.py", *arguments, "--max-new-tokens", "1000000"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert len(process.stdout.read(200)) == 200
        assert process.poll() is None
        process.stdout.close()  # as `head` does: no traceback, no message
        assert process.wait(30) == 0

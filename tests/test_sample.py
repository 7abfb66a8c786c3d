"""`sample.py` as a person runs it."""

import os
import re
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from helpers import ROOT, run_fresh

import sample
from chargpt.checkpoint import load_checkpoint
from chargpt.errors import EscapingFormatter, NonFiniteError, UserError
from chargpt.generation import Sampling, generate
from chargpt.model import Bigram, BigramConfig
from sample import build_parser, side_by_side, until


def run(tiny_run, *arguments, **options):
    return run_fresh("sample.py", "--ckpt", str(tiny_run), "--device", "cpu", *arguments, **options)


@pytest.fixture
def quick(tiny_run, capsys, caplog):
    """In this process, for speed: the exit status, what was written, what was logged."""

    def run_inside(*arguments):
        caplog.clear()
        status = sample.main(["--ckpt", str(tiny_run), "--device", "cpu", *arguments])
        return status, capsys.readouterr().out, "\n".join(map(EscapingFormatter().format, caplog.records))

    return run_inside


def test_a_sample_in_a_fresh_process(tiny_run):
    first, second = (run(tiny_run, "--prompt", "7 green", "--max-new-tokens", "50", "--seed", "1") for _ in range(2))
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("7 green")
    assert len(first.stdout) == len("7 green") + 50 + 1
    assert first.stdout == second.stdout
    assert first.stderr == ""


def test_seeds_differ_and_zero_temperature_does_not(quick):
    def text(*arguments):
        return quick("--max-new-tokens", "60", *arguments)[1]

    assert text("--seed", "1") != text("--seed", "2")
    assert text() != text()
    assert text("--seed", "1", "--temperature", "0") == text("--seed", "2", "--temperature", "0")
    assert text("--seed", "1", "--top-k", "1") == text("--temperature", "0")


def test_several_samples(quick):
    status, out, _ = quick("--num-samples", "3", "--max-new-tokens", "20", "--seed", "1", "--prompt", "on")
    assert status == 0
    parts = re.split(r"--- sample \d of 3 ---\n", out)
    assert parts[0] == ""
    assert [len(part) for part in parts[1:]] == [23] * 3
    assert len(set(parts)) == 4


def test_a_stopped_text_leaves_the_others_alone(quick):
    arguments = ("--num-samples", "3", "--max-new-tokens", "40", "--seed", "1")
    whole = re.split(r"--- sample \d of 3 ---\n", quick(*arguments)[1])[1:]
    stop = whole[0][5:9]
    cut = re.split(r"--- sample \d of 3 ---\n", quick(*arguments, "--stop", stop)[1])[1:]
    assert cut == [text[: text.index(stop)] + "\n" if stop in text else text for text in whole]
    assert len(cut[0]) < len(whole[0])


def test_stride(quick):
    exact, stride = (quick("--seed", "1", "--max-new-tokens", "100", "--window", w)[1] for w in ("exact", "stride"))
    assert exact[:15] == stride[:15]  # within the window of 16 there is no difference
    assert len(exact) == len(stride)


def test_prompt_from_file_and_standard_input(tiny_run, tmp_path):
    (tmp_path / "prompt.txt").write_text("3 green")
    by_file = run(tiny_run, "--prompt-file", str(tmp_path / "prompt.txt"), "--max-new-tokens", "9", "--seed", "1")
    by_pipe = run(tiny_run, "--prompt-file", "-", "--max-new-tokens", "9", "--seed", "1", input="3 green")
    assert by_file.stdout == by_pipe.stdout
    assert by_file.stdout.startswith("3 green")


def test_out_file(quick, tmp_path):
    arguments = ("--prompt", "a", "--max-new-tokens", "30", "--seed", "1")
    status, out, _ = quick("--out", str(tmp_path / "text.txt"), *arguments)
    assert (status, out) == (0, "")
    assert (tmp_path / "text.txt").read_text(encoding="utf-8") == quick(*arguments)[1]


def test_stop(quick):
    whole = quick("--max-new-tokens", "200", "--seed", "1")[1]
    stop = whole[40:43]
    cut = quick("--max-new-tokens", "200", "--seed", "1", "--stop", stop)[1]
    assert cut == whole[: whole.index(stop)] + "\n"


@pytest.mark.parametrize(
    ("stop", "text", "expected"),
    [
        (None, "abc", "abc"),
        ("b", "abc", "a"),
        ("aab", "aaab!", "a"),
        ("abac", "ababac!", "ab"),
        ("xyz", "wxyxyz", "wxy"),
        ("xyz", "wxy", "wxy"),
    ],
)
def test_until(stop, text, expected):
    assert "".join(until(stop, iter(text))) == expected


def test_text_streams(tiny_run):
    """Characters arrive one by one, while more are being written."""
    command = [sys.executable, "sample.py", "--ckpt", str(tiny_run), "--max-new-tokens", "1000000"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert len(process.stdout.read(200)) == 200
        assert process.poll() is None
        process.stdout.close()  # as `head` does: no traceback, no message
        assert process.wait(30) == 0


def test_help_needs_no_torch_and_sampling_no_lightning(tiny_run):
    code = (
        "import sys; sys.argv = ['sample.py', {}]; import runpy\n"
        "try: runpy.run_path('sample.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print(*sorted(m for m in ('torch', 'lightning', 'hydra', 'torchmetrics', 'tensorboard') if m in sys.modules))"
    )
    for arguments, expected in (("'--help'", ""), (f"'--ckpt', {str(tiny_run)!r}, '--max-new-tokens', '1'", "torch")):
        done = subprocess.run([sys.executable, "-c", code.format(arguments)], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "7 gréen€"], r"the prompt has characters outside the vocabulary: 'é' \(U\+00E9\), '€'"),
        (["--temperature", "-1"], "--temperature must be 0"),
        (["--top-k", "0"], "--top-k must be at least 1"),
        (["--top-p", "1.5"], "--top-p must be above 0 and at most 1"),
        (["--max-new-tokens", "0"], "--max-new-tokens must be at least 1"),
        (["--num-samples", "0"], "--num-samples must be at least 1"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--device", "gpu9"], "cannot use the device gpu9"),
        (["--prompt-file", "no/such/file"], "cannot read the prompt from no/such/file: No such file"),
        (["--out", "no/such/file"], "cannot write to no/such/file: No such file"),
        (["--ckpt", "no/such/run"], "no such checkpoint or run: no/such/run"),
        (["--ckpt", "a\x1b]52;\n\u2028\udcff"], r"no such checkpoint or run: a\\x1b\]52;\\n\\u2028\\udcff$"),
        (["--ckpt", "a\0"], "argument --ckpt: not the name of a file"),
        (["--out", "a\0"], "argument --out: not the name of a file"),
        (["--out", "."], "cannot write to .: Is a directory"),
        (["--out", "/dev/full"], "cannot write to /dev/full: No space left on device"),
        (["--prompt-file", "."], "cannot read the prompt from .: Is a directory"),
        (["--prompt", os.fsdecode(b"\xff")], "argument --prompt: the text is not UTF-8"),
        (["--stop", "\ud800"], "argument --stop: the text is not UTF-8"),
        (["--nonsense", "\x1b"], r"unrecognized arguments: --nonsense \\x1b"),
        (["--top-k", "many"], "argument --top-k: invalid int value: 'many'"),
        (["--device", "mkldnn"], "cannot use the device mkldnn"),
        (["--device", ""], "cannot use the device : "),
        (["--seed", "1" + 30 * "0"], "--seed must be at least 0 and below"),
        (["--temperature", "nan"], "--temperature must be 0"),
        (["--temperature", "inf"], "--temperature must be 0"),
        (["--prompt", "a", "--prompt-file", "-"], "argument --prompt-file: not allowed with argument --prompt"),
        (["--window", "wide"], "--window must be one of exact, stride; got 'wide'"),
        (["--unknown", "keep"], "argument --unknown: invalid choice: 'keep'"),
        (["--ckpt", str(ROOT / "README.md")], ".*README.md is damaged, or not a file that chargpt wrote"),
        (["--ckpt"], "argument --ckpt: expected one argument"),
        (["green"], "unrecognized arguments: green"),
    ],
)
def test_bad_input_is_one_line_and_status_2(quick, arguments, message):
    status, out, err = quick(*arguments)
    assert (status, out) == (2, "")
    assert re.match(f"error: {message}", err)
    assert len(err.splitlines()) == 1


def test_out_and_ckpt_in_the_home_folder(tiny_run, quick, tmp_path, monkeypatch):
    """As the shell leaves them in `--ckpt=~/run`."""
    shutil.copytree(tiny_run, tmp_path / "run")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert quick("--ckpt=~/run", "--out=~/text.txt", "--max-new-tokens", "5")[0] == 0
    assert len((tmp_path / "text.txt").read_text(encoding="utf-8")) == 6


@pytest.mark.parametrize(
    ("failure", "status", "message"),
    [
        (MemoryError(), 1, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "out of memory"),
        (NonFiniteError("not finite"), 1, "not finite"),
        (UserError("too much"), 2, "too much"),
        (OSError(5, "Input/output error"), 2, "Input/output error"),
    ],
)
def test_what_fails_before_the_first_character_leaves_the_file(failure, status, message, quick, tmp_path, monkeypatch):
    def fail(*_):
        raise failure
        yield

    monkeypatch.setattr("chargpt.generation.generate", fail)
    (tmp_path / "out.txt").write_text("kept")
    found, out, err = quick("--out", str(tmp_path / "out.txt"))
    assert (found, out, (tmp_path / "out.txt").read_text()) == (status, "", "kept")
    assert re.match(f"error: {message}", err)
    assert len(err.splitlines()) == 1


def test_a_bug_keeps_its_traceback(quick, monkeypatch):
    def fail(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr("sample.load_checkpoint", fail)
    status, _, err = quick()
    assert status == 1
    assert "unexpected RuntimeError: a bug" in err
    assert "Traceback" in err


def test_a_full_disk(tiny_run):
    with open("/dev/full", "w") as full:
        done = run(tiny_run, "--max-new-tokens", "5", capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (2, "error: cannot write to standard output: No space left on device\n")


@pytest.mark.processes
def test_closed_streams(tiny_run, tmp_path):
    def without(*streams, arguments=()):
        closing = "".join(f"os.close({stream});" for stream in streams)
        code = f"import os, sys; {closing} os.execv(sys.executable, [sys.executable, 'sample.py', *sys.argv[1:]])"
        command = [sys.executable, "-c", code, "--ckpt", str(tiny_run), "--max-new-tokens", "5", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    done = without(1)
    assert (done.returncode, done.stderr) == (2, "error: standard output is closed\n")
    done = without(1, 2)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
    done = without(0, 1, 2, arguments=("--out", str(tmp_path / "text.txt")))
    assert done.returncode == 0
    assert len((tmp_path / "text.txt").read_text()) == 6


def test_a_terminal_is_not_commanded(tmp_path):
    """What a vocabulary may hold is shown there, and written as it is elsewhere."""
    characters = "\t\n\x1b]a\x9b\u202e"
    weights = {"net.token_embedding_table.weight": torch.zeros(len(characters), len(characters))}
    settings = {"characters": characters, "model": {"name": "bigram"}}
    torch.save({"hyper_parameters": settings, "state_dict": weights}, tmp_path / "evil.ckpt")
    arguments = ("--ckpt", str(tmp_path / "evil.ckpt"), "--prompt", "\x1b]", "--seed", "1", "--max-new-tokens", "99")
    written = run_fresh("sample.py", *arguments).stdout
    assert set(written) == set(characters)
    master, terminal = os.openpty()
    done = run_fresh("sample.py", *arguments, capture_output=False, stdout=terminal, stderr=subprocess.PIPE)
    os.close(terminal)
    shown = os.read(master, 10_000).decode().replace("\r\n", "\n")
    os.close(master)
    assert done.returncode == 0, done.stderr
    assert shown == written.replace("\x1b", r"\x1b").replace("\x9b", r"\x9b").replace("\u202e", r"\u202e")


def test_one_endless_text_is_not_kept():
    class Row(list):
        """A list that can be watched."""

    rows = [Row([n]) for n in range(200)]
    watched = [weakref.ref(row) for row in rows]
    rows.reverse()
    (text,) = side_by_side(iter(rows.pop, None), 1)
    assert [next(text) for _ in range(100)] == [[n] for n in range(100)]
    assert watched[0]() is None


def test_unknown_characters_can_be_skipped(quick):
    kept = quick("--prompt", "7 gréen€", "--unknown", "skip", "--seed", "1")
    assert kept == quick("--prompt", "7 gren", "--seed", "1")


def test_no_run_yet(tmp_path):
    done = run_fresh("sample.py", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no run in outputs/")


def test_the_newest_run(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "outputs" / "day" / "run")
    done = run_fresh("sample.py", "--max-new-tokens", "5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"Sampling {Path('outputs', 'day', 'run', 'checkpoints', 'best.ckpt')}\n"


def test_characters_of_several_bytes(tmp_path):
    """Out as UTF-8 whatever the locale says."""
    characters = "".join(sorted("道🫠é\u0301"))
    config = {"name": "bigram", "block_size": 4}
    model = Bigram(BigramConfig(block_size=4), vocab_size=4)
    state = {f"net.{name}": value for name, value in model.state_dict().items()}
    content = {"hyper_parameters": {"characters": characters, "model": config}, "state_dict": state}
    torch.save(content, tmp_path / "wide.ckpt")
    environment = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = run_fresh("sample.py", "--ckpt", str(tmp_path / "wide.ckpt"), "--prompt", "道", env=environment)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout) == {*characters, "\n"}
    assert len(done.stdout) == 1 + 500 + 1


def test_parser_knows_the_contract():
    line = "--ckpt x --prompt ROMEO: --max-new-tokens 500 --temperature 0.8 --top-k 40 --top-p 0.95 --num-samples 3"
    parsed = build_parser().parse_args(line.split())
    assert (parsed.temperature, parsed.top_k, parsed.top_p, parsed.num_samples) == (0.8, 40, 0.95, 3)


def test_a_model_of_bytes_writes_whole_characters(bytes_run, capsys):
    """Each part of the output is UTF-8, whatever bytes the model puts one after the other."""
    arguments = ["--ckpt", str(bytes_run), "--prompt", "naïve 道", "--max-new-tokens", "300", "--seed", "1"]
    arguments += ["--device", "cpu"]
    assert sample.main(arguments) == 0
    out = capsys.readouterr().out
    model, tokenizer = load_checkpoint(bytes_run)
    ids = tokenizer.encode("naïve 道")
    seed = torch.Generator().manual_seed(1)
    tokens = torch.cat(list(generate(model, torch.tensor([ids]), Sampling(max_new_tokens=300), seed)))
    assert out == tokenizer.decode([*ids, *tokens.tolist()]) + "\n"  # also a character that is cut off at the end
    assert sample.main([*arguments, "--stop", "\ufffd"]) == 0
    assert capsys.readouterr().out == out.partition("\ufffd")[0] + "\n"

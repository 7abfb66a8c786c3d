"""`sample.py` as a person runs it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, run_script

from chargpt.model import Bigram, BigramConfig
from sample import build_parser, until


def run(tiny_run, *arguments, **options):
    return run_script("sample.py", "--ckpt", str(tiny_run), "--device", "cpu", *arguments, **options)


def inside(tiny_run, capsys, *arguments):
    """In this process, for speed: status, output, errors."""
    import sample

    status = sample.main(["--ckpt", str(tiny_run), "--device", "cpu", *arguments])
    return status, *capsys.readouterr()


@pytest.fixture
def quick(tiny_run, capsys, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(getattr(sys, name), "reconfigure", lambda **_: None, raising=False)
    return lambda *arguments: inside(tiny_run, capsys, *arguments)


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
        (["--temperature", "-1"], "temperature must be 0"),
        (["--top-k", "0"], "top_k must be at least 1"),
        (["--top-p", "1.5"], "top_p must be above 0 and at most 1"),
        (["--max-new-tokens", "0"], "max_new_tokens must be at least 1"),
        (["--num-samples", "0"], "num_samples must be at least 1"),
        (["--seed", "-1"], "seed must be at least 0"),
        (["--device", "gpu9"], "cannot use the device gpu9"),
        (["--prompt-file", "no/such/file"], "cannot read the prompt from no/such/file: No such file"),
        (["--out", "no/such/file"], "cannot write to no/such/file: No such file"),
        (["--ckpt", "no/such/run"], "no such checkpoint or run: no/such/run"),
    ],
)
def test_bad_input_is_one_line_and_status_2(quick, arguments, message):
    status, out, err = quick(*arguments)
    assert (status, out) == (2, "")
    assert re.match(f"error: {message}", err)
    assert err.count("\n") == 1


def test_unknown_characters_can_be_skipped(quick):
    kept = quick("--prompt", "7 gréen€", "--unknown", "skip", "--seed", "1")
    assert kept == quick("--prompt", "7 gren", "--seed", "1")


def test_no_run_yet(tmp_path):
    done = run_script("sample.py", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no run to sample from in outputs/")


def test_the_newest_run(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "outputs" / "day" / "run")
    done = run_script("sample.py", "--max-new-tokens", "5", cwd=tmp_path)
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
    done = run_script("sample.py", "--ckpt", str(tmp_path / "wide.ckpt"), "--prompt", "道", env=environment)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout) == {*characters, "\n"}
    assert len(done.stdout) == 1 + 500 + 1


def test_parser_knows_the_contract():
    line = "--ckpt x --prompt ROMEO: --max-new-tokens 500 --temperature 0.8 --top-k 40 --top-p 0.95 --num-samples 3"
    parsed = build_parser().parse_args(line.split())
    assert (parsed.temperature, parsed.top_k, parsed.top_p, parsed.num_samples) == (0.8, 40, 0.95, 3)

import json
import os

import pytest

from chargpt.files import LARGEST
from chargpt.samples import FILE, LONGEST, Sample, append, keep_until, read_samples

TEXTS = ["line\nline", "\u2028 道 \x1b[2J", ""]


def test_samples_come_back(tmp_path):
    assert read_samples(tmp_path) == []
    keep_until(tmp_path, 5)
    assert not (tmp_path / FILE).exists()
    samples = [Sample(step, text) for step, text in enumerate(TEXTS)]
    for sample in samples:
        append(tmp_path, sample)
    assert read_samples(tmp_path) == samples
    keep_until(tmp_path, 1)
    assert read_samples(tmp_path) == samples[:2]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"no json",
        b"\xff",
        b"[]",
        b"1",
        b"{}",
        b'{"step": 1}',
        b'{"step": -1, "text": "a"}',
        b'{"step": true, "text": "a"}',
        b'{"step": 1.5, "text": "a"}',
        b'{"step": 1e999, "text": "a"}',
        b'{"step": NaN, "text": "a"}',
        b'{"step": 99999999999999999999, "text": "a"}',
        b'{"step": ' + b"9" * 5000 + b', "text": "a"}',
        b'{"step": 1, "text": 1}',
        b'{"step": 1, "text": null}',
        b'{"step": 1, "text": "\\ud800"}',
        b'{"step": 1, "text": "' + b"a" * (LONGEST + 1) + b'"}',
        b"[" * 100_000,
        b'{"step": ' * 100_000,
    ],
    ids=lambda line: repr(line[:40]),
)
def test_a_damaged_line_is_left_out(line, tmp_path):
    good = [Sample(1, "a"), Sample(2, "b")]
    lines = [json.dumps(each._asdict()).encode() for each in good]
    (tmp_path / FILE).write_bytes(b"\n".join([lines[0], line, lines[1], b""]))
    assert read_samples(tmp_path) == good


def test_a_file_of_nothing_but_lines(tmp_path):
    (tmp_path / FILE).write_bytes(b"\n" * (1 << 21))
    assert read_samples(tmp_path) == []
    (tmp_path / FILE).write_bytes(b" " * (LARGEST + 1))
    assert read_samples(tmp_path) == []
    keep_until(tmp_path, 1)
    assert (tmp_path / FILE).stat().st_size == LARGEST + 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes in folders are of POSIX")
def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / FILE)
    assert read_samples(tmp_path) == []

import json

from chargpt.samples import FILE, Sample, append, keep_until, read_samples


def test_samples_come_back(tmp_path):
    assert read_samples(tmp_path) == []
    keep_until(tmp_path, 5)
    assert not (tmp_path / FILE).exists()
    samples = [Sample(step, text) for step, text in enumerate(["line\nline", "\u2028 道 \x1b[2J", ""])]
    for sample in samples:
        append(tmp_path, sample)
    assert read_samples(tmp_path) == samples
    keep_until(tmp_path, 1)
    assert read_samples(tmp_path) == samples[:2]


def test_damaged_lines_are_left_out(tmp_path):
    good = [json.dumps(each._asdict()).encode() for each in (Sample(1, "a"), Sample(2, "b"))]
    bad = [b"", b"no json", b"\xff", b"[]", b'{"step": 1}', b'{"step": 1e999, "text": "a"}', b'{"step": 1, "text": 1}']
    (tmp_path / FILE).write_bytes(b"\n".join([good[0], *bad, b'{"step": 1, "text": "\\ud800"}', good[1], good[0][:9]]))
    assert read_samples(tmp_path) == [Sample(1, "a"), Sample(2, "b")]

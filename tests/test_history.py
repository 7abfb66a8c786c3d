import math

from chargpt.history import LOSSES, Point, Sample, add_losses, add_sample, drop_after, read_losses, read_samples

POINTS = [Point(4, 0.5, 3.25, 3.5, 1000.0), Point(8, 1.0, 3.0, 3.125, 2000.0), Point(12, 1.5, 2.75, 3.0, 1500.0)]
TEXTS = [Sample(4 * step, text) for step, text in enumerate(["line\nline", "\u2028 道 \x1b[2J", ""], 1)]


def test_what_is_added_is_read_back_and_dropped_after_a_step(tmp_path):
    assert read_losses(tmp_path) == read_samples(tmp_path) == []
    drop_after(tmp_path, 9)
    assert not list(tmp_path.iterdir())
    for point, text in zip(POINTS, TEXTS, strict=True):
        add_losses(tmp_path, point)
        add_sample(tmp_path, text)
    assert (tmp_path / LOSSES).read_text(encoding="utf-8").startswith("step,seconds,train_loss,val_loss")
    assert (read_losses(tmp_path), read_samples(tmp_path)) == (POINTS, TEXTS)
    drop_after(tmp_path, 9)
    assert (read_losses(tmp_path), read_samples(tmp_path)) == (POINTS[:2], TEXTS[:2])
    add_losses(tmp_path, POINTS[2])
    assert read_losses(tmp_path) == POINTS


def test_a_number_that_was_not_measured_is_blank(tmp_path):
    """Before the first logged step."""
    add_losses(tmp_path, Point(4, 0.5, math.nan, 3.5, math.nan))
    drop_after(tmp_path, 9)
    assert (tmp_path / LOSSES).read_text(encoding="utf-8").splitlines()[1] == "4,0.5,,3.5,"
    [point] = read_losses(tmp_path)
    assert (point.step, point.val_loss) == (4, 3.5)
    assert math.isnan(point.train_loss)
    assert math.isnan(point.chars_per_second)


def test_damaged_losses_are_left_out(tmp_path):
    add_losses(tmp_path, POINTS[0])
    with (tmp_path / LOSSES).open("ab") as file:
        file.write(b"8,1.0\n\xff,1,2,3,4\n12,1,2,nan,4\n12,1,2,inf,4\n16,2,nan,2.5,nan\n20,1,2,")
    assert [(point.step, point.val_loss) for point in read_losses(tmp_path)] == [(4, 3.5), (16, 2.5)]


def test_damaged_samples_are_left_out(tmp_path):
    bad = [b"", b"no json", b"\xff", b"[]", b'{"step": 1}', b'{"step": 1e999, "text": "a"}', b'{"step": 1, "text": 1}']
    bad += [b"[" * 100_000, b'{"step": 1, "text": "\\ud800"}', b'{"step": 2, "text": "b"}', b'{"step": 3, "te']
    (tmp_path / "samples.jsonl").write_bytes(b"\n".join([b'{"step": 1, "text": "a"}', *bad]))
    assert read_samples(tmp_path) == [Sample(1, "a"), Sample(2, "b")]

import math

from chargpt.curve import FILE, Point, append, keep_until, read_curve

POINTS = [Point(4, 0.5, 3.25, 3.5, 1000.0), Point(8, 1.0, 3.0, 3.125, 2000.0), Point(12, 1.5, 2.75, 3.0, 1500.0)]


def test_what_is_added_is_read(tmp_path):
    assert read_curve(tmp_path) == []
    for point in POINTS:
        append(tmp_path, point)
    assert read_curve(tmp_path) == POINTS
    assert (tmp_path / FILE).read_text(encoding="utf-8").splitlines()[0].startswith("step,seconds,train_loss,val_loss")


def test_what_came_after_a_step_goes(tmp_path):
    keep_until(tmp_path, 9)
    for point in POINTS:
        append(tmp_path, point)
    keep_until(tmp_path, 9)
    assert read_curve(tmp_path) == POINTS[:2]
    append(tmp_path, POINTS[2])
    assert read_curve(tmp_path) == POINTS


def test_rows_that_are_damaged_are_left_out(tmp_path):
    append(tmp_path, POINTS[0])
    with (tmp_path / FILE).open("ab") as file:
        file.write(b"8,1.0\n\xff,1,2,3,4\n12,1,2,nan,4\n12,1,2,inf,4\n16,2,nan,2.5,nan\n20,1,2,")
    first, second = read_curve(tmp_path)
    assert first == POINTS[0]
    assert (second.step, second.val_loss) == (16, 2.5)
    assert math.isnan(second.train_loss)


def test_a_folder_in_its_place_has_no_points(tmp_path):
    (tmp_path / FILE).mkdir()
    assert read_curve(tmp_path) == []

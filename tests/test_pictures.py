import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from chargpt.pictures import Letters, coloured, enlarged, label, lettered, png


@pytest.mark.parametrize(
    ("character", "shown"),
    [
        ("a", "a"), ("$", "$"), ("道", "道"), (" ", "␣"), ("\n", "↵"), ("\t", "⇥"), ("\0", r"\x00"), ("\r", r"\r"),
        ("\u200b", r"\u200b"), ("\xa0", r"\xa0"), ("\U000e0001", r"\U000e0001"),
    ],
)  # fmt: skip
def test_labels(character, shown):
    assert label(character) == shown


@pytest.mark.parametrize("text", ["a", "$", "$x$", r"\$", "道", "\U0001f600", "a" * 500])
def test_letters_are_drawn_as_they_are(text):
    """Also such as the font lacks, without a warning, and such as there is no room for."""
    for turned in (False, True):
        picture = lettered(67, 41, [Letters(33, 20, text, 9, turned)])
        assert (picture.shape, picture.dtype) == ((41, 67, 3), np.uint8)
        assert picture.min() < 100
        assert picture.max() == 255
    assert (lettered(40, 20, [Letters(20, 10, "$x$", 9)]) != lettered(40, 20, [Letters(20, 10, "x", 9)])).any()


def test_where_letters_stand():
    picture = lettered(100, 60, [Letters(25, 15, "M", 12)])
    rows, columns = np.nonzero(picture[..., 0] < 128)
    assert abs(rows.mean() - 15) < 2
    assert abs(columns.mean() - 25) < 2


def test_cells():
    shares = np.array([[0.0, 0.5], [1.0, 7.0]])
    cells = coloured(shares, "Blues")
    assert (
        cells[1, 0].tolist()
        == cells[1, 1].tolist()
        == [int(255 * each) for each in matplotlib.colormaps["Blues"](1.0)[:3]]
    )
    assert coloured(shares, "Blues", 0.5)[1, 0].tolist() == cells[0, 1].tolist()
    large = enlarged(cells, 3, 2)
    assert large.shape == (4, 6, 3)
    assert (large[:2, 3:] == cells[0, 1]).all()


def test_a_file():
    figure = Figure()
    figure.text(0.5, 0.5, "道")
    assert png(figure).startswith(b"\x89PNG")

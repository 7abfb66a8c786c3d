import pytest
from matplotlib.figure import Figure

from chargpt.pictures import label, png


@pytest.mark.parametrize(
    ("character", "shown"),
    [
        ("a", "a"), ("$", "$"), ("道", "道"), (" ", "␣"), ("\n", "↵"), ("\t", "⇥"), ("\0", r"\x00"), ("\r", r"\r"),
        ("\u200b", r"\u200b"), ("\xa0", r"\xa0"), ("\U000e0001", r"\U000e0001"),
    ],
)  # fmt: skip
def test_labels_are_visible(character, shown):
    assert label(character) == shown


def test_a_figure_becomes_a_file_also_if_its_font_lacks_a_character(recwarn):
    figure = Figure()
    figure.text(0.5, 0.5, "道")
    assert png(figure).startswith(b"\x89PNG")
    assert not recwarn.list

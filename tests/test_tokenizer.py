import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chargpt.errors import UserError
from chargpt.tokenizer import ByteTokenizer, CharTokenizer, UnknownCharacterError, visible


@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=1))
def test_round_trip(text):
    tokenizer = CharTokenizer("".join(sorted(set(text))))
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.decode(ids) == text


def test_ids_follow_code_points():
    tokenizer = CharTokenizer("".join(sorted(set("hello, world"))))
    assert tokenizer.characters == " ,dehlorw"
    assert tokenizer.encode("heh") == [4, 3, 4]
    assert tokenizer.decode(torch.tensor([4, 3, 4])) == "heh"


def test_unknown_characters_are_named_once():
    with pytest.raises(UnknownCharacterError, match=r"'é' \(U\+00E9\), '€' \(U\+20AC\)") as error:
        CharTokenizer("ab").encode("aéb€é")
    assert error.value.characters == "é€"
    assert CharTokenizer("ab").encode("aéb€é", skip_unknown=True) == [0, 1]


def test_accents_in_the_other_form():
    """One character, or a letter and an accent after it, which look the same."""
    with pytest.raises(UnknownCharacterError, match="an accent as a character after its letter"):
        CharTokenizer("acef\u0301").encode("caf\u00e9")
    with pytest.raises(UnknownCharacterError, match="an accented letter as one character"):
        CharTokenizer("acf\u00e9").encode("cafe\u0301")


@pytest.mark.parametrize("characters", ["", "ba", "aa", ["a", "b"], None])
def test_no_vocabulary(characters):
    with pytest.raises(UserError, match="a vocabulary"):
        CharTokenizer(characters)


def test_bytes_that_a_command_line_had():
    assert ByteTokenizer().encode("a\udcff") == [97, 255]


@pytest.mark.parametrize(
    ("character", "shown"),
    [
        ("a", "a"), ("$", "$"), ("道", "道"), (" ", "␣"), ("\n", "↵"), ("\t", "⇥"), ("\0", r"\x00"), ("\r", r"\r"),
        ("\u200b", r"\u200b"), ("\xa0", r"\xa0"), ("\U000e0001", r"\U000e0001"),
    ],
)  # fmt: skip
def test_every_character_is_visible_in_a_picture(character, shown):
    assert visible(character) == shown

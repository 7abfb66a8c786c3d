from dataclasses import dataclass, field

import pytest

from chargpt.errors import UserError
from chargpt.settings import read_settings


@dataclass
class Config:
    """A field of each type."""

    name: str = "one"
    count: int = 3
    rate: float = 0.5
    words: str = "abc"
    on: bool = False
    numbers: list[float] = field(default_factory=lambda: [1.0])
    maybe: int | None = None


@dataclass
class Another:
    name: str = "two"
    size: int = 7


KINDS = {"one": Config, "two": Another}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"name": "one"}, Config()),
        ({"name": "two", "size": 9}, Another(size=9)),
        ({"name": "one", "maybe": 4, "on": True}, Config(maybe=4, on=True)),
        ({"name": "one", "rate": 2, "numbers": [1, 2.5]}, Config(rate=2, numbers=[1, 2.5])),
        ({"size": 9}, Another(size=9)),
    ],
)
def test_missing_options_have_their_defaults(settings, expected):
    kept = dict(settings)
    assert read_settings("model", KINDS, settings, default="two") == expected
    assert settings == kept


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": True}, "model.count must be of type int; got True"),
        ({"rate": "0.5"}, "model.rate must be of type float; got '0.5'"),
        ({"words": None}, "model.words must be of type str; got None"),
        ({"numbers": ["a"]}, "model.numbers must be of type list; got ['a']"),
        ({"maybe": "x"}, "model.maybe must be of type int | None; got 'x'"),
        ({"cuont": 3}, "unknown key model.cuont; did you mean model.count?"),
        ({5: 3}, "unknown key model.5 (there are count, maybe, name, numbers, on, rate, words)"),
        ({"name": "three"}, "model.name must be one of one, two; got 'three'"),
        ({"name": ["one"]}, "model.name must be one of one, two; got ['one']"),
    ],
)
def test_wrong_options_are_named(wrong, message):
    with pytest.raises(UserError) as error:
        read_settings("model", KINDS, {"name": "one"} | wrong)
    assert str(error.value) == message

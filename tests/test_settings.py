from dataclasses import dataclass, field

import pytest

from chargpt.batches import DataConfig
from chargpt.errors import UserError
from chargpt.model import MODEL_CONFIGS, BigramConfig, GPTConfig
from chargpt.optim import OPTIMIZER_CONFIGS, AdamWConfig
from chargpt.settings import make, read_settings


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
    either: int | float | None = None


@dataclass
class Another:
    name: str = "two"
    size: int = 7


KINDS = {"one": Config, "two": Another}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"name": "one"}, Config()),
        ({"name": "two"}, Another()),
        ({"name": "two", "size": 9}, Another(size=9)),
        ({"name": "one", "maybe": 4, "on": True}, Config(maybe=4, on=True)),
        ({"name": "one", "maybe": None, "words": ""}, Config(words="")),
        ({"name": "one", "rate": 2, "numbers": [1, 2.5]}, Config(rate=2, numbers=[1, 2.5])),
        ({"name": "one", "numbers": []}, Config(numbers=[])),
    ],
)
def test_what_is_missing_has_its_default(settings, expected):
    kept = dict(settings)
    assert read_settings("model", KINDS, settings) == expected
    assert settings == kept


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": True}, "model.count must be a whole number; got True"),
        ({"count": 1.0}, "model.count must be a whole number; got 1.0"),
        ({"count": None}, "model.count must be a whole number; got None"),
        ({"rate": "0.5"}, "model.rate must be a number; got '0.5'"),
        ({"rate": False}, "model.rate must be a number; got False"),
        ({"words": 5}, "model.words must be text; got 5"),
        ({"words": None}, "model.words must be text; got None"),
        ({"on": 1}, "model.on must be true or false; got 1"),
        ({"numbers": 0.5}, "model.numbers must be a list; got 0.5"),
        ({"numbers": ["a"]}, "model.numbers must be a list; got ['a']"),
        ({"numbers": [True]}, "model.numbers must be a list; got [True]"),
        ({"numbers": (0.5, 0.5)}, "model.numbers must be a list; got (0.5, 0.5)"),
        ({"maybe": "x"}, "model.maybe must be a whole number or null; got 'x'"),
        ({"either": "x"}, "model.either must be a number or null; got 'x'"),
        ({"maybe": False}, "model.maybe must be a whole number or null; got False"),
        ({"cuont": 3}, "unknown key model.cuont; did you mean model.count?"),
        ({"zzz": 3}, "unknown key model.zzz (there are count, either, maybe, name, numbers, on, rate, words)"),
        ({5: 3}, "unknown key model.5 (there are count, either, maybe, name, numbers, on, rate, words)"),
    ],
)
def test_unknown_keys_and_wrong_types_are_named(wrong, message):
    with pytest.raises(UserError) as error:
        read_settings("model", KINDS, {"name": "one"} | wrong)
    assert str(error.value) == message


@pytest.mark.parametrize("name", ["three", "One", "", None, 1, ["one"], "__class__"])
def test_an_unknown_name(name):
    with pytest.raises(UserError) as error:
        read_settings("model", KINDS, {"name": name})
    assert str(error.value) == f"model.name must be one of one, two; got {name!r}"


@pytest.mark.parametrize("settings", [None, "one", ["one"], 5])
def test_no_mapping(settings):
    with pytest.raises(UserError) as error:
        read_settings("model", KINDS, settings)
    assert str(error.value) == f"model must be a mapping of options; got {settings!r}"


def test_no_name():
    with pytest.raises(UserError, match=r"model\.name must be one of one, two; got None"):
        read_settings("model", KINDS, {})
    assert read_settings("model", KINDS, {"size": 9}, default="two") == Another(size=9)
    assert read_settings("model", KINDS, {"name": "one"}, default="two") == Config()


def test_a_dataclass_without_a_choice():
    assert make("data", DataConfig, {"source": "file", "path": "x.txt"}) == DataConfig(source="file", path="x.txt")
    assert make("data", DataConfig, {"path": None}) == DataConfig()
    with pytest.raises(UserError, match=r"unknown key data\.bacth_size; did you mean data\.batch_size\?"):
        make("data", DataConfig, {"bacth_size": 3})
    with pytest.raises(UserError, match=r"data\.path must be a text or a list of texts; got 3"):
        make("data", DataConfig, {"path": 3})


def test_our_own_configurations():
    """Types are checked before ranges, and ranges then by the classes themselves."""
    assert read_settings("model", MODEL_CONFIGS, {"name": "gpt", "n_layer": 2}) == GPTConfig(n_layer=2)
    assert read_settings("model", MODEL_CONFIGS, {"name": "bigram"}) == BigramConfig()
    betas = {"name": "adamw", "betas": [0, 0.9]}
    assert read_settings("optimizer", OPTIMIZER_CONFIGS, betas) == AdamWConfig(betas=[0, 0.9])
    with pytest.raises(UserError, match=r"model\.n_layer must be a whole number; got '2'"):
        read_settings("model", MODEL_CONFIGS, {"name": "gpt", "n_layer": "2"})
    with pytest.raises(UserError, match=r"model\.n_layer must be at least 1 and at most 1,000; got 0"):
        read_settings("model", MODEL_CONFIGS, {"name": "gpt", "n_layer": 0})

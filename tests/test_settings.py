import math
from dataclasses import dataclass, field

import pytest

from chargpt.batches import DataConfig
from chargpt.errors import UserError
from chargpt.generation import Sampling
from chargpt.model import GPTConfig
from chargpt.optim import AdamWConfig, MuonConfig
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
    ],
)
def test_missing_options_have_their_defaults(settings, expected):
    kept = dict(settings)
    assert read_settings("model", KINDS, settings) == expected
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


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (DataConfig, {"split": [1.0]}, r"data\.split must be two or three shares of the text, such as \[0\.9,0\.1\]"),
        (DataConfig, {"split": [0.0, 1.0]}, r"data\.split must be"),
        (DataConfig, {"split": [0.9, float("nan")]}, r"data\.split must be"),
        (DataConfig, {"split": [0.8, 0.1, 0.1], "test_path": "a"}, r"data\.split must be two shares with data\.val"),
        (DataConfig, {"tokenizer": "words"}, r"data\.tokenizer must be one of characters, bytes; got 'words'"),
        (DataConfig, {"block_size": 0}, r"data\.block_size must be at least 1; got 0"),
        (DataConfig, {"seed": -1}, r"data\.seed must be at least 0; got -1"),
        (DataConfig, {"source": "shakespear"}, r"data\.source must be one of shakespeare, .*; got 'shakespear'"),
        (DataConfig, {"path": "my.txt"}, r"data\.path is for a text of your own: data=file data\.path=my\.txt"),
        (DataConfig, {"path": 1.1}, r"data\.path must be a text .*, in quotes if it looks like a number; got 1\.1"),
        (DataConfig, {"source": "file", "path": ["a", 5]}, r"data\.path must be a text or a list of .*got \['a', 5\]"),
        (GPTConfig, {"n_head": 5, "n_embd": 24}, "model.n_embd must be divisible by model.n_head, 5; got 24"),
        (GPTConfig, {"n_layer": 0}, "model.n_layer must be at least 1; got 0"),
        (GPTConfig, {"n_head": 0}, "model.n_head must be at least 1"),
        (GPTConfig, {"dropout": 1.0}, "model.dropout must be at least 0 and below 1"),
        (GPTConfig, {"dropout": float("nan")}, "model.dropout"),
        (GPTConfig, {"positions": "sine"}, "model.positions must be one of learned, rotary; got 'sine'"),
        (GPTConfig, {"positions": "rotary", "n_head": 8, "n_embd": 24}, "twice model.n_head with .*, 16; got 24"),
        (AdamWConfig, {"lr": 0.0}, r"optimizer\.lr must be above 0"),
        (AdamWConfig, {"lr": math.inf}, r"optimizer\.lr"),
        (AdamWConfig, {"weight_decay": -1.0}, r"optimizer\.weight_decay"),
        (AdamWConfig, {"betas": [0.9, 1.0]}, r"optimizer\.betas"),
        (AdamWConfig, {"decay_share": 0.0}, r"optimizer\.decay_share must be above 0 and at most 1; got 0\.0"),
        (AdamWConfig, {"schedule": "cosin"}, r"optimizer\.schedule must be one of constant, .*, linear; got 'cosin'"),
        (AdamWConfig, {"warmup_steps": -1}, r"optimizer\.warmup_steps"),
        (AdamWConfig, {"min_lr_factor": 2.0}, r"optimizer\.min_lr_factor"),
        (MuonConfig, {"momentum": 1.0}, r"optimizer\.momentum"),
        (MuonConfig, {"adamw_lr": 0.0}, r"optimizer\.adamw_lr"),
        (MuonConfig, {"weight_decay": math.nan}, r"optimizer\.weight_decay"),
        (MuonConfig, {"betas": [0.9]}, r"optimizer\.betas"),
        (Sampling, {"temperature": -1.0}, "temperature must be 0"),
        (Sampling, {"temperature": float("nan")}, "temperature"),
        (Sampling, {"top_k": 0}, "top_k must be at least 1"),
        (Sampling, {"top_p": 1.5}, "top_p must be above 0 and at most 1"),
        (Sampling, {"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        (Sampling, {"num_samples": 0}, "num_samples must be at least 1"),
        (Sampling, {"window": "stirde"}, "window must be one of exact, stride; got 'stirde'"),
    ],
)
def test_out_of_range(kind, change, message):
    with pytest.raises(UserError, match=message):
        kind(**change)

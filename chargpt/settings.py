"""From plain settings, as a configuration or a checkpoint holds them, to checked dataclasses."""

import math
import types
import typing
from typing import Any, TypeVar

from chargpt.errors import UserError, did_you_mean

Config = TypeVar("Config")
MOST_STEPS = 2**53  # a float can count them
LARGEST = 100_000_000  # for a size: beyond any machine


def read_settings(group: str, kinds: dict[str, type[Config]], settings: Any, default: str | None = None) -> Config:
    """The configuration of the class that the mapping's `name` (or else `default`) stands for."""
    name = settings.get("name", default) if isinstance(settings, dict) else None
    if not isinstance(name, str) or name not in kinds:
        raise UserError(f"{group}.name must be one of {', '.join(kinds)}; got {name!r:.100}")
    return make(group, kinds[name], settings | {"name": name})


def make(group: str, kind: type[Config], options: Any) -> Config:
    """A dataclass from a mapping; missing fields have their defaults. Types are checked here, ranges by the class.

    Args:
        group: for messages: `model` for `model.n_layer`.
    """
    if not isinstance(options, dict):
        raise UserError(f"{group} must be a mapping of options; got {options!r:.100}")
    types_of = typing.get_type_hints(kind)
    for key, value in options.items():
        if key not in types_of:
            raise UserError(f"unknown key {group}.{key!s:.100}{did_you_mean(str(key), types_of, f'{group}.')}")
        if not _is_a(value, types_of[key]):
            expected = getattr(types_of[key], "__name__", types_of[key])
            raise UserError(f"{group}.{key} must be of type {expected}; got {value!r:.100}")
    return kind(**options)


def _is_a(value: Any, kind: Any) -> bool:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return any(_is_a(value, each) for each in parts)
    if origin is list:
        return isinstance(value, list) and all(_is_a(each, parts[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(_is_a(k, parts[0]) and _is_a(v, parts[1]) for k, v in value.items())
    return kind is Any or type(value) is kind or (kind is float and type(value) is int)  # a boolean is not a number


def check_ranges(group: str, config: Any, **limits: tuple[int, int]) -> None:
    """Refuse a whole number outside of its limits, both of which are allowed."""
    for name, (least, most) in limits.items():
        value = getattr(config, name)
        if not least <= value <= most:
            raise UserError(f"{group}.{name} must be at least {least} and at most {most:,}; got {value}")


def check_split(group: str, split: list[float]) -> None:
    """Refuse shares that do not split a text into two or three parts."""
    if not (2 <= len(split) <= 3 and all(0 < share < 1 for share in split) and math.isclose(sum(split), 1)):
        raise UserError(
            f"{group}.split must be two or three shares of the text, such as [0.9,0.1], each above 0 and together 1;"
            f" got {split}"
        )

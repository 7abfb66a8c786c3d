"""From plain settings, as a configuration or a checkpoint holds them, to checked dataclasses."""

import math
import types
import typing
from typing import Any, TypeVar

from chargpt.errors import UserError, did_you_mean

Config = TypeVar("Config")


def read_settings(group: str, kinds: dict[str, type[Config]], settings: Any) -> Config:
    """The configuration of the class that the mapping's `name` stands for."""
    name = settings.get("name") if isinstance(settings, dict) else None
    if not isinstance(name, str) or name not in kinds:
        raise UserError(f"{group}.name must be one of {', '.join(kinds)}; got {name!r:.100}")
    return make(group, kinds[name], settings | {"name": name})


def make(group: str, kind: type[Config], options: Any) -> Config:
    """A dataclass from a mapping; missing fields have their defaults. Types are checked here, ranges by the class. The
    `group` is for messages: `model` for `model.n_layer`."""
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


def require(is_right: bool, key: str, rule: str, value: object) -> None:
    """Refuse the value of a setting that breaks a rule."""
    if not is_right:
        raise UserError(f"{key} must be {rule}; got {value!r}")


def require_at_least(least: int, config: Any, group: str, *names: str) -> None:
    """Refuse fields of a configuration that are smaller."""
    for name in names:
        value = getattr(config, name)
        require(value >= least, f"{group}.{name}", f"at least {least}", value)


def require_split(group: str, split: list[float]) -> None:
    """Refuse shares that do not split a text into two or three parts."""
    is_right = 2 <= len(split) <= 3 and all(0 < share < 1 for share in split) and math.isclose(sum(split), 1)
    rule = "two or three shares of the text, such as [0.9,0.1], each above 0 and together 1"
    require(is_right, f"{group}.split", rule, split)

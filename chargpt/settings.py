"""From plain settings, as a configuration file or a checkpoint holds them, to the dataclass that they are for."""

import types
import typing
from typing import Any, TypeVar

from chargpt.errors import UserError, did_you_mean

Config = TypeVar("Config")


def read_settings(group: str, kinds: dict[str, type[Config]], settings: Any, default: str | None = None) -> Config:
    """The configuration that a mapping describes: of the class that its `name` stands for, other keys being options.

    Options that the mapping lacks have their defaults, so that a file from before an option existed can be read.

    Args:
        group: what the options are called by in messages: `model` for `model.n_layer`.
        kinds: the classes by name.
        default: the name where the mapping has none.

    Raises:
        UserError: the name or an option is unknown, or a value is of another type or out of range.
    """
    if not isinstance(settings, dict):
        raise UserError(f"{group} must be a mapping of options; got {settings!r}")
    name = settings.get("name", default)
    if not isinstance(name, str) or name not in kinds:
        raise UserError(f"{group}.name must be one of {', '.join(kinds)}; got {name!r}")
    return make(group, kinds[name], settings | {"name": name})


def make(group: str, kind: type[Config], options: dict[str, Any]) -> Config:
    """A dataclass from a mapping of its fields, of which some may be missing.

    Raises:
        UserError: an option is unknown, of another type or out of range.
    """
    expected = typing.get_type_hints(kind)
    for key, value in options.items():
        if key not in expected:
            raise UserError(f"unknown key {group}.{key}{did_you_mean(str(key), expected, f'{group}.')}")
        if not _is_a(value, expected[key]):
            raise UserError(f"{group}.{key} must be {_name(expected[key])}; got {value!r}")
    return kind(**options)


def _is_a(value: Any, kind: Any) -> bool:
    if isinstance(kind, types.UnionType):
        return any(_is_a(value, each) for each in typing.get_args(kind))
    if typing.get_origin(kind) is list:
        return isinstance(value, list) and all(_is_a(each, typing.get_args(kind)[0]) for each in value)
    if isinstance(value, bool):  # to Python a whole number
        return kind is bool
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)


def _name(kind: Any) -> str:
    """What to call a type in a message to someone who may not know Python."""
    if isinstance(kind, types.UnionType):
        return " or ".join(_name(each) for each in typing.get_args(kind))
    if typing.get_origin(kind) is list:
        return "a list"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", types.NoneType: "null"}
    return names[kind]

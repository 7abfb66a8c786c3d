"""From plain settings, as a configuration file or a checkpoint holds them, to the objects that they are for."""

import math
import reprlib
import types
import typing
from collections.abc import Iterable
from typing import Any, TypeVar

from chargpt.errors import UserError, did_you_mean

Config = TypeVar("Config")
MOST_STEPS = 2**53  # a float can count them
LARGEST = 100_000_000  # for a size: beyond any machine, and small enough that products of two sizes can be counted


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
        raise UserError(f"{group} must be a mapping of options; got {shown(settings)}")
    name = settings.get("name", default)
    if not isinstance(name, str) or name not in kinds:
        raise UserError(f"{group}.name must be one of {', '.join(kinds)}; got {shown(name)}")
    return make(group, kinds[name], settings | {"name": name})


def make(group: str, kind: type[Config], options: dict[str, Any]) -> Config:
    """A dataclass from a mapping of its fields, of which some may be missing.

    Raises:
        UserError: an option is unknown, of another type or out of range.
    """
    known = typing.get_type_hints(kind)
    for key in options:
        if key not in known:
            key = (key if isinstance(key, str) else shown(key))[:100]
            raise UserError(f"unknown key {group}.{key}{did_you_mean(key, known, f'{group}.')}")
    check_types(group, known, options)
    return kind(**options)


def check_ranges(group: str, config: Any, **limits: tuple[int, int]) -> None:
    """Refuse a whole number outside of its limits, both of which are allowed.

    Raises:
        UserError: there is one.
    """
    for name, (least, most) in limits.items():
        value = getattr(config, name)
        if not least <= value <= most:
            raise UserError(f"{group}.{name} must be at least {least} and at most {most:,}; got {value}")


def check_split(group: str, split: list[float]) -> None:
    """Refuse what is no split of a text into two or three parts.

    Raises:
        UserError: it is none.
    """
    if not (2 <= len(split) <= 3 and all(0 < share < 1 for share in split) and math.isclose(sum(split), 1)):
        raise UserError(
            f"{group}.split must be two or three shares of the text, such as [0.9,0.1], each above 0 and together 1;"
            f" got {shown(split)}"
        )


def arguments_of(kind: type) -> dict[str, Any]:
    """The types that a class declares for its arguments; none where they cannot be told."""
    try:
        return typing.get_type_hints(kind.__init__)  # type: ignore[misc]  # asked what it declares, and not called
    except Exception:  # somebody else's annotations may name what is only there for a type checker
        return {}


def check_types(group: str, expected: dict[str, Any], options: dict[str, Any]) -> None:
    """Refuse a value of another type than the one declared; where none is declared, any will do.

    Raises:
        UserError: there is one.
    """
    for key, value in options.items():
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise UserError(f"{group}.{key} must be a number of at most 64 bits; got {shown(value)}")
        if not _is_a(value, expected.get(key, Any)):
            raise UserError(f"{group}.{key} must be {_name(expected[key])}; got {shown(value)}")


def _is_a(value: Any, kind: Any) -> bool:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return any(_is_a(value, each) for each in parts)
    if origin is typing.Literal:
        return any(type(value) is type(each) and value == each for each in parts)
    if origin in (list, Iterable):
        return isinstance(value, list) and all(_is_a(each, parts[0]) for each in value)
    if origin is dict:
        return isinstance(value, dict) and all(_is_a(each, parts[1]) for each in value.values())
    if kind is Any or not isinstance(kind, type):  # or something finer than is told apart here
        return True
    if isinstance(value, bool):  # to Python a whole number
        return kind in (bool, object)
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)


def _name(kind: Any) -> str:
    """What to call a type in a message to someone who may not know Python."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(_name(each) for each in parts if each is not int or float not in parts))
    if origin is typing.Literal:
        return " or ".join(map(str, parts))
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", types.NoneType: "null"}
    names |= {list: "a list", Iterable: "a list", dict: "a mapping"}
    return names.get(origin or kind) or f"a {getattr(kind, '__name__', kind)}"


class _Short(reprlib.Repr):
    """Shows plain values; of any other, whose own representation may take any time, only what it is."""

    def repr_instance(self, x: Any, level: int) -> str:
        plain = isinstance(x, bool | float | bytes | type | None)
        return super().repr_instance(x, level) if plain else f"a {type(x).__name__}"


def shown(value: Any) -> str:
    """A value as a message shows it, however long or deep it is."""
    short = _Short()
    short.maxstring, short.maxother, short.maxlevel = 100, 100, 3
    return short.repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "one of more than 40 digits"

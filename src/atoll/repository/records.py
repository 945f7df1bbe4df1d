"""Dataclasses to JSON and back, in a way that later versions can still read."""

import dataclasses
import types
import typing
from enum import Enum
from typing import Any, TypeVar

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """Dataclasses as objects by field name, tuples as lists, enums by value."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    return value


def from_json(kind: type[T], value: Any) -> T:
    """The dataclass `kind` from what `to_json` made of it, by this version or another.

    Fields the class does not know are passed over; fields that are absent take
    the class's default. ValueError if one without a default is absent or a value
    is of another type.
    """
    return typing.cast(T, _value(kind, value))


def _value(kind: Any, value: Any) -> Any:
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _one_of(arguments, value)
    if origin is tuple:
        _expect(value, list, kind)
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_value(arguments[0], item) for item in value)
        return tuple(_value(each, item) for each, item in zip(arguments, value, strict=True))
    if origin is dict:
        _expect(value, dict, kind)
        return {key: _value(arguments[1], item) for key, item in value.items()}
    if dataclasses.is_dataclass(kind):
        _expect(value, dict, kind)
        return _dataclass(kind, value)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    if kind is float and type(value) is int:
        return float(value)
    _expect(value, kind, kind)
    return value


def _dataclass(kind: Any, value: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(kind)
    known = {
        field.name: _value(hints[field.name], value[field.name])
        for field in dataclasses.fields(kind)
        if field.name in value
    }
    try:
        return kind(**known)
    except TypeError as error:
        raise ValueError(f"{kind.__name__}: {error}") from error


def _one_of(kinds: tuple[Any, ...], value: Any) -> Any:
    # An int fits float as well, and a bool is an int, so the exact type goes first.
    for kind in sorted(kinds, key=lambda kind: kind is not type(value)):
        try:
            return _value(kind, value)
        except ValueError:
            continue
    raise ValueError(f"{value!r} is none of {kinds}")


def _expect(value: Any, kind: Any, described: Any) -> None:
    if type(value) is not kind:
        raise ValueError(f"{value!r:.80} is no {described}")

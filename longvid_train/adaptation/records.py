"""Frozen dataclasses from plain values, strictly: unknown keys and values of another type are refused."""

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from longvid_train.errors import UserError, nearest


class Record(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


R = TypeVar("R", bound=Record)

_NO_FIT = object()

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", NoneType: "null"}


def read_yaml(path: Path, *, use: str = "") -> object:
    """Plain values of a YAML file.

    Args:
        path: of the file.
        use: what it is read for, in messages.

    Raises:
        UserError: it is missing or not YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read{f' as {use}' if use else ''}: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def read_record(record: type[R], values: object, where: str) -> R:
    """Build ``record`` from a mapping of its field names.

    Args:
        record: a dataclass whose fields all have defaults.
        values: plain values, as YAML or JSON gives them.
        where: names the place in messages.

    Raises:
        UserError: no mapping, an unknown key, a value of another type, or one that the dataclass refuses.
    """
    given = as_mapping(values, where)
    hints = {one.name: get_type_hints(record)[one.name] for one in fields(record) if one.init}
    check_keys(given, tuple(hints), where)
    parsed = {key: read_value(hints[key], value, f"{where}: {key}") for key, value in given.items()}
    return construct(record, parsed, where)


def construct(record: type[R], parsed: Mapping[str, Any], where: str) -> R:
    """``record(**parsed)``, with ``where`` in front of what it refuses."""
    try:
        return record(**parsed)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def plain_values(record: Record) -> dict[str, Any]:
    """The fields that differ from their defaults, as YAML and JSON can hold them; `read_record` reads them back."""
    values = {}
    for one in fields(record):
        value = getattr(record, one.name)
        default = one.default if one.default_factory is MISSING else one.default_factory()
        if value != default:
            values[one.name] = list(value) if isinstance(value, tuple) else value
    return values


def read_value(hint: Any, value: object, where: str) -> Any:
    """``value`` as the type ``hint``: lists become tuples, whole numbers become floats where floats are meant.

    Raises:
        UserError: the value is of another type.
    """
    converted = _converted(hint, value)
    if converted is _NO_FIT:
        raise UserError(f"{where} is {value!r}; it must be {_words(hint)}")
    return converted


def as_mapping(value: object, where: str) -> Mapping[str, Any]:
    """``value`` if it maps names to values.

    Raises:
        UserError: it does not.
    """
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise UserError(f"{where} must be a mapping of names to values, got {value!r}")
    return value


def check_keys(given: Mapping[str, Any], valid: tuple[str, ...], where: str) -> None:
    """Refuse a key that is not in ``valid``.

    Raises:
        UserError: naming the nearest valid key.
    """
    for key in given:
        if key not in valid:
            hint = nearest(key, valid) or "."
            raise UserError(f"{where}: '{key}' is unknown{hint} Keys: {', '.join(valid)}")


def _converted(hint: Any, value: object) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (UnionType, Union):
        tried = (_converted(one, value) for one in arguments)
        return next((one for one in tried if one is not _NO_FIT), _NO_FIT)
    if origin is Literal:  # which words are valid is for the record to say
        return value if isinstance(value, str) else _NO_FIT
    if origin is tuple:
        return _converted_tuple(arguments, value)
    if isinstance(value, bool) and hint is not bool:
        return _NO_FIT
    if hint is float and isinstance(value, int):
        return float(value)
    return value if isinstance(value, hint) else _NO_FIT


def _converted_tuple(arguments: tuple[Any, ...], value: object) -> Any:
    if not isinstance(value, list | tuple):
        return _NO_FIT
    hints = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
    if len(hints) != len(value):
        return _NO_FIT
    converted = tuple(_converted(hint, one) for hint, one in zip(hints, value, strict=True))
    return _NO_FIT if any(one is _NO_FIT for one in converted) else converted


def _words(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (UnionType, Union):
        return " or ".join(_words(one) for one in arguments)
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if origin is tuple:
        items = [one for one in arguments if one is not Ellipsis]
        return f"a list [{', '.join(_words(one) for one in items)}{', ...' if len(items) < len(arguments) else ''}]"
    return _WORDS[hint]

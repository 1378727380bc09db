"""Settings by dotted key, laid over plain values: ``model.optimizer.lr`` in what a YAML file holds."""

from collections.abc import Mapping
from typing import Any

_CLASS_KEYS = ("class_path", "init_args")


def with_settings(values: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``values`` with each setting in its place; whether a key means anything is for its reader to say.

    Where a mapping names a class (``class_path``), keys stand under its ``init_args``, written or not, as on the
    command line of Lightning.
    """
    result = _copied(values)
    for key, value in settings.items():
        _put(result, key.split("."), value)
    return result


def without_keys(values: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """``values`` without some of its keys."""
    return {key: value for key, value in values.items() if key not in keys}


def _put(values: dict[str, Any], keys: list[str], value: Any) -> None:
    first, *rest = keys
    if "class_path" in values and first not in _CLASS_KEYS:
        first, rest = "init_args", keys
    if not rest:
        values[first] = value
        return
    if not isinstance(values.get(first), dict):
        values[first] = {}
    _put(values[first], rest, value)


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(one) for key, one in value.items()}
    return [_copied(one) for one in value] if isinstance(value, list) else value

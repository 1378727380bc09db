"""Taking fields out of a parsed record, with the message a broken record gets."""

import json
import math
from collections.abc import Mapping
from typing import Any

from data_prep.outcome import BadRecordError


def text_field(value: Any, name: str) -> str:
    """A field that must be text with something in it."""
    found = field(value, name)
    if not isinstance(found, str) or not found.strip():
        raise BadRecordError(f"field '{name}' is not text", shown(found))
    return found


def name_field(value: Any, name: str) -> str:
    """A field that names something: text, or a whole number, which is taken as text."""
    found = field(value, name)
    if isinstance(found, int) and not isinstance(found, bool):
        return str(found)
    return text_field(value, name)


def whole_field(value: Any, name: str) -> int:
    """A field that must be a whole number; CSV files hold it as text."""
    found = field(value, name)
    if isinstance(found, str) and found.isdecimal():
        return int(found)
    if isinstance(found, bool) or not isinstance(found, int):
        raise BadRecordError(f"field '{name}' is not a whole number", shown(found))
    return found


def number_field(value: Any, name: str) -> float:
    """A field that must be a number, not negative and not infinite."""
    found = field(value, name)
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found < math.inf:
        raise BadRecordError(f"field '{name}' is not a number, 0 or more", shown(found))
    return float(found)


def list_field(value: Any, name: str) -> list[Any]:
    """A field that must be a JSON array with something in it."""
    found = field(value, name)
    if not isinstance(found, list) or not found:
        raise BadRecordError(f"field '{name}' is not a filled array", shown(found))
    return found


def field(value: Any, name: str) -> Any:
    """A field that must be there.

    Raises:
        BadRecordError: the record is no object, or has no such field.
    """
    if not isinstance(value, Mapping):
        raise BadRecordError("the record is not a JSON object", shown(value))
    if name not in value:
        raise BadRecordError(
            f"field '{name}' is missing", f"the record has {', '.join(map(str, value)) or 'no fields'}"
        )
    return value[name]


def shown(value: Any) -> str:
    """A value for a message, at most 80 characters of it."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 80 else text[:77] + "..."

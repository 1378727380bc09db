"""Small JSON files that hold one object, e.g. a table of names."""

import json
from typing import Any

from data_prep.reading.inputs import InputFile
from data_prep.reading.text import text_blocks
from longvid_train.errors import UserError


def read_json_object(source: InputFile) -> dict[str, Any]:
    """The object that the file holds; the whole file is read into memory.

    Raises:
        UserError: the file is not UTF-8 or not one JSON object, or a key stands twice.
    """
    try:
        value = json.loads("".join(text_blocks(source)), object_pairs_hook=lambda pairs: _unique(source, pairs))
    except json.JSONDecodeError as error:
        raise UserError(f"{source.name}:{error.lineno}: not JSON: {error.msg}") from error
    except RecursionError as error:
        raise UserError(f"{source.name}: the JSON is nested too deeply") from error
    if not isinstance(value, dict):
        raise UserError(f"{source.name}: the file must hold one JSON object")
    return value


def _unique(source: InputFile, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise UserError(f"{source.name}: key '{key}' stands twice")
        result[key] = value
    return result

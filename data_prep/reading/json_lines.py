"""JSON Lines: one JSON value a line; a broken line is one bad item and the next line is read."""

import json
from collections.abc import Iterator

from data_prep.reading.inputs import InputFile
from data_prep.reading.item import Item
from data_prep.reading.text import NOT_UTF8, byte_lines


def read_json_lines(source: InputFile) -> Iterator[Item]:
    """Yield every line that is not blank.

    Raises:
        UserError: the file cannot be read or is UTF-16 or UTF-32.
    """
    for number, raw in enumerate(byte_lines(source), start=1):
        if not raw.strip():
            continue
        try:
            yield Item(file=source.name, line=number, value=json.loads(raw.decode("utf-8")))
        except UnicodeDecodeError as error:
            problem = f"byte 0x{raw[error.start]:02x} {NOT_UTF8}"
            yield Item(file=source.name, line=number, problem=problem)
        except json.JSONDecodeError as error:
            yield Item(file=source.name, line=number, problem=f"not JSON: {error.msg} at column {error.colno}")
        except (ValueError, RecursionError) as error:
            yield Item(file=source.name, line=number, problem=f"not JSON: {error}")

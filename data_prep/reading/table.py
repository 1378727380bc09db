"""CSV files with a header line."""

import csv
from collections.abc import Iterator, Sequence

from data_prep.reading.inputs import InputFile
from data_prep.reading.item import Item
from data_prep.reading.text import text_lines
from longvid_train.errors import UserError, nearest

MAX_FIELD_CHARACTERS = 1 << 24


def read_table(source: InputFile, columns: Sequence[str]) -> Iterator[Item]:
    """Yield every row as a dict of column to text; columns beyond those asked for are kept.

    Args:
        source: the file.
        columns: names that the header must hold.

    Raises:
        UserError: the header lacks a column or names one twice, or the quoting is broken.
    """
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    reader = csv.reader(text_lines(source), strict=True)
    try:
        header = _header(source, next(reader, None), columns)
        line = reader.line_num + 1
        for fields in reader:
            if fields:
                yield _row(source, line, header, fields)
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{source.name}:{reader.line_num}: not CSV: {error}") from error


def _header(source: InputFile, header: list[str] | None, columns: Sequence[str]) -> list[str]:
    if header is None:
        raise UserError(f"{source.name}: the file is empty; its first line must name the columns {', '.join(columns)}")
    for name in columns:
        if name not in header:
            close = nearest(name, header)
            raise UserError(f"{source.name}:1: column '{name}' is missing; the file has {', '.join(header)}{close}")
    repeated = next((name for name in header if header.count(name) > 1), None)
    if repeated is not None:
        raise UserError(f"{source.name}:1: column '{repeated}' stands twice")
    return header


def _row(source: InputFile, line: int, header: list[str], fields: list[str]) -> Item:
    if len(fields) != len(header):
        problem = f"the row has {len(fields)} fields but the header names {len(header)}"
        return Item(file=source.name, line=line, problem=problem)
    return Item(file=source.name, line=line, value=dict(zip(header, fields, strict=True)))

"""Parquet files as the Hub holds data sets, row by row."""

import io
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.reading.inputs import InputFile
from data_prep.reading.item import Item
from longvid_train.errors import UserError, nearest

_ROWS_AT_ONCE = 256


def read_parquet_rows(source: InputFile, columns: Sequence[str]) -> Iterator[Item]:
    """Yield every row as a dict of column to value; columns beyond those asked for are kept.

    A plain file is read in groups of rows; one inside an archive is read into memory, for Parquet is read from its end.

    Args:
        source: the file.
        columns: names that the file must hold.

    Raises:
        UserError: the file is no Parquet file, or lacks a column.
    """
    packed = source.member is not None or source.path.suffix == ".gz"
    try:
        with pq.ParquetFile(io.BytesIO(b"".join(source.blocks())) if packed else source.path) as file:
            _check(source, file.schema_arrow.names, columns)
            element = 0
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                for value in batch.to_pylist():
                    element += 1
                    yield Item(file=source.name, line=0, element=element, value=value)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{source.name}: not a whole Parquet file ({' '.join(str(error).split())[:120]})") from error


def _check(source: InputFile, found: Sequence[str], columns: Sequence[str]) -> None:
    for name in columns:
        if name not in found:
            hint = nearest(name, list(found))
            raise UserError(f"{source.name}: column '{name}' is missing; the file has {', '.join(found)}{hint}")

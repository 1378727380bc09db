"""Which keys of numbered rows occur more than once, found on disk: memory does not grow with the number of rows."""

import sqlite3
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from types import TracebackType
from typing import NamedTuple, Self

from longvid_train.errors import UserError

_BATCH_ROWS = 4096
_CACHE_KIB = 8192
_KEYS_OF_REPEATS = "SELECT key FROM entries GROUP BY key HAVING COUNT(*) > 1"


class Repeat(NamedTuple):
    """A key that occurs more than once.

    Attributes:
        key: as it was added.
        rows: two or more row numbers, ascending.
    """

    key: str
    rows: tuple[int, ...]


class Repeats:
    """Keys with the rows they stand in, in a private SQLite file that is gone when this is closed.

    SQLite keeps `_CACHE_KIB` of it in memory and sorts the rest in its temporary folder (``SQLITE_TMPDIR`` or
    ``TMPDIR``), which takes the length of the key and about 20 bytes an entry, twice.
    """

    def __init__(self) -> None:
        """Open an empty set of keys."""
        self._connection = sqlite3.connect("", isolation_level=None)
        for statement in (
            f"PRAGMA cache_size = -{_CACHE_KIB}",
            "PRAGMA journal_mode = OFF",
            "CREATE TABLE entries (key TEXT NOT NULL, number INTEGER NOT NULL)",
            "BEGIN",
        ):
            self._connection.execute(statement)
        self._waiting: list[tuple[str, int]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, key: str, row: int) -> None:
        """Note that ``key`` stands in row ``row``.

        Raises:
            UserError: the temporary folder is full.
        """
        self._waiting.append((key, row))
        if len(self._waiting) >= _BATCH_ROWS:
            self._flush()

    def repeats(self) -> Iterator[Repeat]:
        """Every key that was added for more than one row, or more than once for a row, in the order of the keys.

        Raises:
            UserError: the temporary folder is full.
        """
        self._flush()
        entries = self._run(f"SELECT key, number FROM entries WHERE key IN ({_KEYS_OF_REPEATS}) ORDER BY key, number")
        for key, group in groupby(entries, key=itemgetter(0)):
            yield Repeat(key, tuple(row for _, row in group))

    def first(self) -> Repeat | None:
        """The repeat that a reader going down the rows meets first."""
        return min(self.repeats(), key=lambda repeat: repeat.rows[1], default=None)

    def close(self) -> None:
        """Free the disk space."""
        self._connection.close()

    def _flush(self) -> None:
        try:
            self._connection.executemany("INSERT INTO entries VALUES (?, ?)", self._waiting)
        except sqlite3.OperationalError as error:
            raise out_of_space(error) from error
        self._waiting.clear()

    def _run(self, statement: str) -> Iterator[tuple[str, int]]:
        try:
            yield from self._connection.execute(statement)
        except sqlite3.OperationalError as error:
            raise out_of_space(error) from error


def out_of_space(error: sqlite3.OperationalError) -> UserError:
    """What to say when SQLite cannot write its temporary files."""
    return UserError(
        f"rows cannot be compared in the temporary folder ({error}); free some space or set TMPDIR to a "
        "folder on a larger disk"
    )

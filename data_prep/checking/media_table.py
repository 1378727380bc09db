"""Media files of manifests in a private SQLite file: who uses each, its size, length and content.

As with repeated keys, SQLite keeps a few MiB in memory and the rest in its temporary folder.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import groupby
from operator import itemgetter
from types import TracebackType
from typing import Any, NamedTuple, Self

from data_prep.checking.rows import ChunkFacts
from longvid_train.data.repeats import out_of_space

_CACHE_KIB = 16384
_TABLES = """
PRAGMA journal_mode = OFF;
CREATE TABLE uses (path TEXT, manifest INTEGER, line INTEGER, type TEXT, PRIMARY KEY (path, manifest)) WITHOUT ROWID;
CREATE TABLE subtitles (path TEXT PRIMARY KEY, manifest INTEGER, line INTEGER) WITHOUT ROWID;
CREATE TABLE windows (path TEXT, start_s REAL, end_s REAL, manifest INTEGER, line INTEGER);
CREATE UNIQUE INDEX one_window ON windows (path, start_s, IFNULL(end_s, -1));
CREATE TABLE files (path TEXT PRIMARY KEY, bytes INTEGER, duration_s REAL, sha256 TEXT) WITHOUT ROWID;
"""
_DISTINCT = """
SELECT path, type, manifest, line FROM uses AS this
WHERE manifest = (SELECT MIN(manifest) FROM uses WHERE path = this.path) ORDER BY manifest, line
"""
_SAME_SIZE = """
SELECT path FROM files WHERE bytes IN (SELECT bytes FROM files GROUP BY bytes HAVING COUNT(*) > 1) ORDER BY bytes, path
"""
_CONTENTS = """
SELECT IFNULL(sha256, uses.path) AS content, manifest, line, uses.path
FROM uses LEFT JOIN files ON files.path = uses.path ORDER BY content, manifest, line, uses.path
"""
_WINDOWS = """
SELECT windows.path, start_s, end_s, manifest, line, duration_s FROM windows JOIN files ON files.path = windows.path
WHERE duration_s IS NOT NULL ORDER BY manifest, line
"""


class Use(NamedTuple):
    """A file and the first line of a manifest that names it; ``type`` is ``image``, ``video`` or ``subtitles``."""

    path: str
    type: str
    manifest: int
    line: int


class Content(NamedTuple):
    """A use of a file, beside the others of the same bytes."""

    manifest: int
    line: int
    path: str


class TimedWindow(NamedTuple):
    """A part of a video whose length is known."""

    path: str
    start_s: float
    end_s: float | None
    manifest: int
    line: int
    duration_s: float


class MediaTable:
    """All media of the manifests under check."""

    def __init__(self) -> None:
        """Open an empty table."""
        self._connection = sqlite3.connect("", isolation_level=None)
        self._connection.executescript(f"PRAGMA cache_size = -{_CACHE_KIB}; {_TABLES} BEGIN;")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def add(self, manifest: int, first_line: int, facts: ChunkFacts) -> None:
        """Note the media of a chunk whose first line is ``first_line`` of the manifest; chunks come in order."""
        before = first_line - 1
        self._insert("uses", ((path, manifest, before + line, kind) for (path, kind), line in facts.media.items()))
        self._insert("subtitles", ((path, manifest, before + line) for path, line in facts.subtitles.items()))
        self._insert("windows", ((*window, manifest, before + line) for window, line in facts.windows.items()))

    def add_file(self, path: str, size_bytes: int, duration_s: float | None) -> None:
        """Note a file that exists."""
        self._insert("files", [(path, size_bytes, duration_s, None)])

    def add_content(self, path: str, sha256: str) -> None:
        """Note what a file holds."""
        self._connection.execute("UPDATE files SET sha256 = ? WHERE path = ?", (sha256, path))

    @property
    def media_count(self) -> int:
        """Different media files."""
        return int(self._connection.execute("SELECT COUNT(DISTINCT path) FROM uses").fetchone()[0])

    @property
    def subtitles_count(self) -> int:
        """Different subtitle files."""
        return int(self._connection.execute("SELECT COUNT(*) FROM subtitles").fetchone()[0])

    def files(self) -> Iterator[Use]:
        """Every different media file once, then every subtitle file, with its first use."""
        yield from map(Use._make, self._rows(_DISTINCT))
        statement = "SELECT path, 'subtitles', manifest, line FROM subtitles ORDER BY manifest, line"
        yield from map(Use._make, self._rows(statement))

    def of_shared_size(self) -> Iterator[str]:
        """Files of which another has as many bytes: only they can hold the same."""
        return (path for (path,) in self._rows(_SAME_SIZE))

    def contents(self) -> Iterator[list[Content]]:
        """Uses of the same bytes, in the order of manifests and lines; a file not known by content stands alone."""
        for _, group in groupby(self._rows(_CONTENTS), key=itemgetter(0)):
            yield [Content(manifest, line, path) for _, manifest, line, path in group]

    def timed_windows(self) -> Iterator[TimedWindow]:
        """Parts of videos whose length is known."""
        return map(TimedWindow._make, self._rows(_WINDOWS))

    def _insert(self, table: str, rows: Iterable[tuple[object, ...]]) -> None:
        listed = list(rows)
        if listed:
            marks = ", ".join("?" * len(listed[0]))
            try:
                self._connection.executemany(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", listed)
            except sqlite3.OperationalError as error:
                raise out_of_space(error) from error

    def _rows(self, statement: str) -> Iterator[tuple[Any, ...]]:
        with closing(self._connection.cursor()) as cursor:
            yield from cursor.execute(statement)

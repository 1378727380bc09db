"""How many frames a sampling takes of a file: known from a probe, remembered by the file's identity.

A file's identity is its absolute path, size and time of modification, so a replaced file is probed again.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longvid_train.errors import UserError
from longvid_train.video import AtTimes, DecodeLimits, Sampling, VideoInfo, frame_count, probe, select

_TABLE = "CREATE TABLE IF NOT EXISTS frames (key TEXT PRIMARY KEY, count INTEGER NOT NULL)"
_LOCK_TIMEOUT_S = 60.0


class FrameCounts:
    """Frame counts of this process, and of earlier ones if a store is named.

    The store is one SQLite file that several processes may use at once.
    """

    def __init__(self, store: Path | None = None) -> None:
        """Remember in memory and, if named, in the file ``store``.

        Raises:
            UserError: ``store`` cannot be written or is another kind of file.
        """
        self._store = store
        self._known: dict[str, int] = {}
        if store is not None:
            self._run(_TABLE)

    def count(self, path: Path, sampling: Sampling, limits: DecodeLimits, *, isolated: bool = False) -> int:
        """Number of frames ``read_clip`` returns for ``sampling``; nothing but the first frame is decoded.

        Raises:
            UserError: the file cannot be probed, or does not hold what ``sampling`` asks for.
        """
        key = _identity(path, sampling)
        if key not in self._known:
            self._known[key] = self._stored(key) or self._probed(key, path, sampling, limits, isolated)
        return self._known[key]

    def _stored(self, key: str) -> int | None:
        rows = self._run("SELECT count FROM frames WHERE key = ?", key) if self._store is not None else []
        return rows[0] if rows else None

    def _probed(self, key: str, path: Path, sampling: Sampling, limits: DecodeLimits, isolated: bool) -> int:
        frames = frame_count(sampling, probe(path, isolated=isolated, limits=limits))
        if self._store is not None:
            self._run("INSERT OR REPLACE INTO frames VALUES (?, ?)", key, frames)
        return frames

    def _run(self, statement: str, *values: str | int) -> list[int]:
        """Run one statement in a connection of its own: none is shared with a forked worker."""
        assert self._store is not None
        try:
            with closing(sqlite3.connect(self._store, timeout=_LOCK_TIMEOUT_S)) as connection, connection:
                return [row[0] for row in connection.execute(statement, values).fetchall()]
        except sqlite3.Error as error:
            raise UserError(
                f"probe_cache '{self._store}' cannot be used ({error}); name a writable path whose folder exists, or "
                "delete the file"
            ) from error


def thinned(sampling: Sampling, info: VideoInfo, max_frames: int) -> Sampling:
    """The frames of ``sampling``, evenly thinned to at most ``max_frames``; the same object when it takes no more.

    Raises:
        UserError: as `select`.
    """
    chosen = select(sampling, info.timestamps_s, info.duration_s)
    if len(chosen) <= max_frames:
        return sampling
    kept = chosen[evenly_spaced(len(chosen), max_frames)]
    return AtTimes(times_s=tuple(info.timestamps_s[kept].tolist()))


def evenly_spaced(count: int, kept: int) -> NDArray[np.int64]:
    """Positions of ``kept`` out of ``count`` frames, ``(kept,)`` increasing: the first, the last and between them."""
    assert 1 <= kept <= count
    return np.rint(np.linspace(0, count - 1, kept)).astype(np.int64)


def _identity(path: Path, sampling: Sampling) -> str:
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: no such file, or it may not be read ({error})") from error
    return f"{path.absolute()}|{status.st_size}|{status.st_mtime_ns}|{sampling!r}"

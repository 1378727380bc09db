"""SHA-256 of files, remembered by what the file system says of them, so that terabytes are hashed once."""

import logging
import sqlite3
from contextlib import closing
from pathlib import Path

from longvid_train.errors import UserError
from longvid_train.files import sha256_file

log = logging.getLogger(__name__)

STORE_FILE = "file_hashes.sqlite"
_TABLE = "CREATE TABLE IF NOT EXISTS hashes (path TEXT PRIMARY KEY, identity TEXT NOT NULL, sha256 TEXT NOT NULL)"
_LOCK_TIMEOUT_S = 60.0


class FileHashes:
    """Hashes of this process and of earlier ones.

    A remembered hash holds as long as the file's size, inode and times of modification and of status change are the
    same: whatever writes to a file changes one of them. The store is one SQLite file that several processes may use; if
    it cannot be written, hashes are remembered in this process only, with a warning.
    """

    def __init__(self, store: Path, *, rehash: bool = False) -> None:
        """Remember in ``store``; ``rehash`` reads every file once, whatever is remembered."""
        self._store = store
        self._rehash = rehash
        self._known: dict[str, tuple[str, str]] = {}

    def sha256(self, path: Path) -> str:
        """Hex SHA-256 of the file's bytes.

        Raises:
            UserError: the file is missing or may not be read.
        """
        name, identity = str(path.absolute()), _identity(path)
        known = self._known.get(name)
        if known is None and not self._rehash:
            known = self._stored(name)
        if known is None or known[0] != identity:
            known = (identity, _hashed(path))
            self._remember(name, *known)
        self._known[name] = known
        return known[1]

    def remembered(self, path: Path) -> str | None:
        """The file's hash if it is known without reading the file."""
        name = str(path.absolute())
        known = self._known.get(name) or self._stored(name)
        return known[1] if known is not None and known[0] == _identity(path) else None

    def _stored(self, name: str) -> tuple[str, str] | None:
        if not self._store.exists():
            return None
        try:
            with closing(sqlite3.connect(f"{self._store.absolute().as_uri()}?mode=ro", uri=True)) as connection:
                return connection.execute("SELECT identity, sha256 FROM hashes WHERE path = ?", (name,)).fetchone()
        except sqlite3.Error as error:
            log.warning("%s cannot be read (%s): the file is hashed again", self._store, error)
            return None

    def _remember(self, name: str, identity: str, digest: str) -> None:
        try:
            with closing(sqlite3.connect(self._store, timeout=_LOCK_TIMEOUT_S)) as connection, connection:
                connection.execute(_TABLE)
                connection.execute("INSERT OR REPLACE INTO hashes VALUES (?, ?, ?)", (name, identity, digest))
        except sqlite3.Error as error:
            log.warning("%s cannot be written (%s): the next run hashes %s again", self._store, error, name)


def _identity(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; its features cannot be checked without the file") from error
    return f"{status.st_size}|{status.st_ino}|{status.st_mtime_ns}|{status.st_ctime_ns}"


def _hashed(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; its features cannot be checked without the file") from error

"""Temporary neighbours of a folder that is written: locked while someone writes them, cleared when nobody does."""

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """Make ``.<target's name>.<random>`` beside ``target``, locked until it is removed at the end.

    What a killed process left under such a name is removed at the end too, when the new ``target`` is in its place:
    nobody holds its lock. The lock (``flock``) is the operating system's and ends with the process that holds it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = staging_prefix(target)
    with _locked(target.parent):
        staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=prefix))
        lock = os.open(staging, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield staging
        remove_abandoned(target.parent, f"{glob.escape(prefix)}*")
    finally:
        shutil.rmtree(staging)
        os.close(lock)


def staging_prefix(target: Path) -> str:
    """What the names of ``target``'s temporary neighbours begin with."""
    return f".{target.name}."


def remove_abandoned(folder: Path, pattern: str) -> None:
    """Remove the temporary neighbours in ``folder`` that nobody holds, as far as they are this user's to remove.

    Args:
        folder: where they lie.
        pattern: of their names, as for ``Path.glob``.
    """
    with _locked(folder):
        for path in folder.glob(pattern):
            if path.is_dir() and not _is_locked(path):
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait for and hold the lock of a folder: no other process is between making and locking a neighbour."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _is_locked(folder: Path) -> bool:
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False

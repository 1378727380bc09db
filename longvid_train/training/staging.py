"""Temporary neighbours of a folder that is written: locked while someone writes them, cleared when nobody does."""

import fcntl
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
    prefix = f".{target.name}."
    with _locked(target.parent):
        staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=prefix))
        lock = os.open(staging, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield staging
        with _locked(target.parent):
            _remove_abandoned(target.parent, prefix)
    finally:
        shutil.rmtree(staging)
        os.close(lock)


def _remove_abandoned(folder: Path, prefix: str) -> None:
    for path in folder.iterdir():
        if path.name.startswith(prefix) and path.is_dir() and not _is_locked(path):
            shutil.rmtree(path)


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

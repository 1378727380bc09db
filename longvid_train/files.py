"""Atomic file writing and hashing, shared by every room.

A file that exists is whole: content goes to a temporary neighbour first and is renamed over the target.
"""

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; rename it over ``target`` if the body succeeds, else remove it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{_unused()}{target.suffix}")
    temporary.touch(exist_ok=False)
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``target``; rename it to ``target`` if the body succeeds, else remove it.

    ``target`` must not exist, or be an empty folder.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{_unused()}")
    temporary.mkdir()
    try:
        yield temporary
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(target: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``target`` atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(target: Path, value: Any) -> None:
    """Write ``value`` as indented JSON with sorted keys to ``target`` atomically."""
    write_text(target, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of the file's bytes, read in chunks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for chunk in iter(lambda: _read_mebibyte(stream), b""):
            digest.update(chunk)
    return digest.hexdigest()


def _read_mebibyte(stream: IO[bytes]) -> bytes:
    return stream.read(1 << 20)


def _unused() -> str:
    """A part of a name that no other thread or process has.

    `tempfile` makes files that only their owner reads, and what the umask allows cannot be asked for without setting
    it, for all threads at once. A file made by name has the right mode from the start.
    """
    return secrets.token_hex(8)

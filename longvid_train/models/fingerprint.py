"""What tells two checkpoints apart without reading them whole: an adapter must meet the model it was trained on."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longvid_train.errors import UserError
from longvid_train.files import sha256_file

BLOCK_BYTES = 4096
BLOCKS = 16
"""A tensor of more than ``BLOCKS * BLOCK_BYTES`` bytes is represented by this many evenly spaced blocks of it."""

_NOTES = "transformers_version"


@dataclass(frozen=True)
class _Stored:
    """One tensor of a safetensors file: its header entry and where its bytes are."""

    name: str
    description: str
    file: Path
    start: int
    size: int


def fingerprint(folder: Path) -> str:
    """Return a hex SHA-256 over a transformers folder's ``config.json`` and weights.

    Of each tensor it covers name, dtype, shape and up to 64 KiB of the values (all of a small tensor, evenly spaced
    blocks of a large one): two trainings differ in nearly every value, and 14 GB need not be read. It tells models
    apart; it is no proof against tampering. It does not depend on how the weights are split into files.

    Raises:
        UserError: ``config.json`` or a weights file is missing or broken.
    """
    digest = hashlib.sha256(json.dumps(_read_config(folder / "config.json"), sort_keys=True).encode())
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder}: no *.safetensors weights; name a complete checkpoint")
    for tensor in sorted((stored for file in files for stored in _tensors(file)), key=lambda stored: stored.name):
        digest.update(tensor.description.encode())
        for block in _blocks(tensor):
            digest.update(block)
    return digest.hexdigest()


def file_digests(folder: Path, *, but: str | None = None) -> dict[str, str]:
    """SHA-256 of every file in a folder and below it, by its path there.

    Args:
        folder: of a small model, or of what stands beside a large one's weights.
        but: a suffix of files that are left out, e.g. ``".safetensors"``.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != but)
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def _read_config(path: Path) -> Any:
    try:
        return _without_notes(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); name a complete checkpoint") from error


def _without_notes(value: Any) -> Any:
    """Drop the library's version, which a newer library rewrites, at every depth."""
    if isinstance(value, dict):
        return {name: _without_notes(inner) for name, inner in value.items() if name != _NOTES}
    return value


def _tensors(file: Path) -> Iterator[_Stored]:
    """Read a safetensors header: 8 bytes of little-endian length, then JSON."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(length, file.stat().st_size)))
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                description = json.dumps([name, entry["dtype"], entry["shape"]])
                yield _Stored(name, description, file, 8 + length + start, end - start)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: not a whole safetensors file ({error}); save the model again") from error


def _blocks(tensor: _Stored) -> Iterator[bytes]:
    with tensor.file.open("rb") as stream:
        for offset, size in block_ranges(tensor.size):
            stream.seek(tensor.start + offset)
            yield stream.read(size)


def block_ranges(size: int) -> list[tuple[int, int]]:
    """``(offset, bytes)`` of what represents ``size`` bytes; the first and the last byte are always covered."""
    if size <= BLOCKS * BLOCK_BYTES:
        return [(0, size)]
    last = size - BLOCK_BYTES
    return [(last * number // (BLOCKS - 1), BLOCK_BYTES) for number in range(BLOCKS)]

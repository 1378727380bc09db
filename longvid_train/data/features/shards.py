"""One shard: a safetensors file that says itself what it holds and how to check it.

Each tensor is a piece: consecutive frames of one clip, ``(n, 1 + P, C)``, named ``<key>:<first frame>``. The header's
metadata has the cache's settings and, for each piece, its clip, its frames' times and a CRC-32 of every frame, so that
one frame is read and checked without the rest. The file is named by the SHA-256 of its header: a changed header no
longer fits its name, and two processes never write different content under one name.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from longvid_train.data.features.settings import FeatureSettings, canonical_json, settings_from_json
from longvid_train.errors import UserError

SUFFIX = ".safetensors"
_PREFIX = "shard-"
_METADATA = "longvid_features"
_NAME_DIGITS = 32
_LENGTH_BYTES = 8
REMEDY = "delete it and run the same longvid predict again: it makes only what is missing"


class Clip(NamedTuple):
    """The sampled frames of one file.

    Attributes:
        key: see ``clip_key``.
        path: the file, as it was named when the features were made (for messages).
        file_sha256: of its bytes.
        sampling: ``describe_sampling`` with the clip's window.
        frame_count: frames of the whole clip.
        times_sha256: of all their times.
    """

    key: str
    path: str
    file_sha256: str
    sampling: str
    frame_count: int
    times_sha256: str


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Consecutive frames of a clip in a shard.

    Attributes:
        clip: the whole clip.
        first_frame: number of the piece's first frame in it.
        times_s: of the piece's frames.
        crc32: of each frame's bytes.
    """

    clip: Clip
    first_frame: int
    times_s: tuple[float, ...]
    crc32: tuple[int, ...]

    @property
    def name(self) -> str:
        """Name of its tensor."""
        return f"{self.clip.key}:{self.first_frame}"

    @property
    def end_frame(self) -> int:
        """Number of the frame behind its last."""
        return self.first_frame + len(self.times_s)


@dataclass(frozen=True)
class ShardHeader:
    """What a shard says of itself."""

    settings: FeatureSettings
    pieces: tuple[Piece, ...]


def frame_crc32(features: torch.Tensor) -> tuple[int, ...]:
    """CRC-32 of each frame's bytes of ``(n, ...)`` features on the CPU."""
    return tuple(zlib.crc32(frame.contiguous().view(torch.uint8).numpy()) for frame in features)


def write_shard(
    folder: Path, settings: FeatureSettings, pieces: Sequence[Piece], features: Sequence[torch.Tensor], writer: str
) -> Path:
    """Write a shard atomically: it is whole and on disk when it gets its name, or not there.

    Args:
        folder: of the cache.
        settings: of the cache.
        pieces: what the tensors are.
        features: ``(n, 1 + P, C)`` on the CPU in the storage type, one a piece.
        writer: word in the temporary file's name, by which `remove_leftovers` knows it.
    """
    listed = [{**asdict(piece), "clip": piece.clip._asdict()} for piece in pieces]
    metadata = {_METADATA: canonical_json({"settings": asdict(settings), "pieces": listed})}
    tensors = {piece.name: part.contiguous() for piece, part in zip(pieces, features, strict=True)}
    temporary = folder / f".{writer}.{os.getpid()}{SUFFIX}"
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        save_file(tensors, temporary, metadata=metadata)
        temporary.chmod(mode)  # safetensors makes files that only their owner may read
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        target = folder / f"{_PREFIX}{_header_digest(_header_bytes(temporary))}{SUFFIX}"
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def remove_leftovers(folder: Path, writer: str) -> None:
    """Remove temporary files of ``writer`` that a killed run left."""
    for path in folder.glob(f".{writer}.*{SUFFIX}"):
        path.unlink()


def shard_paths(folder: Path) -> list[Path]:
    """All shards of a folder, by name."""
    return sorted(folder.glob(f"{_PREFIX}*{SUFFIX}"))


def read_header(path: Path) -> ShardHeader:
    """Read and check a shard's header and its size; no feature is read.

    Raises:
        UserError: the file is cut off or its header was changed; the message names it.
    """
    raw = _header_bytes(path)
    if path.name != f"{_PREFIX}{_header_digest(raw)}{SUFFIX}":
        raise UserError(f"{path}: the shard is damaged (its header does not fit its name); {REMEDY}")
    header: dict[str, Any] = json.loads(raw)
    values = json.loads(header.pop("__metadata__")[_METADATA])
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    expected_bytes = _LENGTH_BYTES + len(raw) + end
    if path.stat().st_size != expected_bytes:
        raise UserError(
            f"{path}: the shard is damaged ({path.stat().st_size} bytes instead of {expected_bytes}); {REMEDY}"
        )
    return ShardHeader(settings_from_json(values["settings"]), tuple(_piece(piece) for piece in values["pieces"]))


class OpenShard:
    """A memory-mapped shard: a read touches the pages of the frames it returns, and no others."""

    def __init__(self, path: Path) -> None:
        """Map the file.

        Raises:
            UserError: see ``read_header``.
        """
        self.path = path
        self.pieces = {piece.name: piece for piece in read_header(path).pieces}
        try:
            self._mapped: Any = safe_open(path, framework="pt", device="cpu")
        except SafetensorError as error:
            raise UserError(f"{path}: the shard is damaged ({error}); {REMEDY}") from error

    def read(self, name: str, rows: Sequence[int]) -> torch.Tensor:
        """Copy of the frames ``rows`` (numbers within the piece) of one piece, ``(len(rows), 1 + P, C)``.

        Raises:
            UserError: a frame's bytes are not those that were written; the message names the shard.
        """
        piece = self.pieces[name]
        frames: torch.Tensor = self._mapped.get_tensor(name)[list(rows)]
        for row, found in zip(rows, frame_crc32(frames), strict=True):
            if found != piece.crc32[row]:
                raise UserError(
                    f"{self.path}: the shard is damaged (checksum of frame {piece.first_frame + row} of "
                    f"'{piece.clip.path}' is {found:08x} instead of {piece.crc32[row]:08x}); {REMEDY}"
                )
        return frames


def _piece(values: dict[str, Any]) -> Piece:
    return Piece(
        clip=Clip(**values["clip"]),
        first_frame=values["first_frame"],
        times_s=tuple(values["times_s"]),
        crc32=tuple(values["crc32"]),
    )


def _header_bytes(path: Path) -> bytes:
    """The JSON of a safetensors header: the file starts with its length, 8 bytes little-endian."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        return stream.read(min(length, path.stat().st_size))


def _header_digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:_NAME_DIGITS]

"""Collects features of one process and writes them in shards; what shards already hold is not asked for again."""

from pathlib import Path

import torch

from longvid_train.data.features.index import covered, stored_pieces
from longvid_train.data.features.settings import DTYPES, FeatureSettings
from longvid_train.data.features.shards import Clip, Piece, frame_crc32, remove_leftovers, write_shard
from longvid_train.errors import UserError

SHARD_BYTES = 1 << 30


class FeatureWriter:
    """Writes a shard whenever ``shard_bytes`` of features are together, and the rest at `close`.

    Attributes:
        frames: frames added so far.
    """

    def __init__(self, folder: Path, settings: FeatureSettings, writer: str, *, shard_bytes: int = SHARD_BYTES) -> None:
        """Write to ``folder``; no two running processes may have the same name ``writer``."""
        if shard_bytes < 1:
            raise UserError(f"shard_bytes is {shard_bytes}; it must be at least 1")
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder, writer)
        self._folder = folder
        self._settings = settings
        self._writer = writer
        self._shard_bytes = shard_bytes
        self._pieces: list[Piece] = []
        self._features: list[torch.Tensor] = []
        self._bytes = 0
        self.frames = 0

    def add(self, clip: Clip, first_frame: int, times_s: tuple[float, ...], features: torch.Tensor) -> None:
        """Take consecutive frames of a clip, ``(n, 1 + P, C)`` on any device; they are cast to the storage type.

        Raises:
            UserError: a value is not finite or too large for the storage type; the message names the file.
        """
        stored = features.to(DTYPES[self._settings.dtype]).cpu()
        if not torch.isfinite(stored).all():
            _refuse(clip, features, self._settings.dtype)
        self._pieces.append(Piece(clip=clip, first_frame=first_frame, times_s=times_s, crc32=frame_crc32(stored)))
        self._features.append(stored)
        self._bytes += stored.nbytes
        self.frames += len(stored)
        if self._bytes >= self._shard_bytes:
            self.close()

    def close(self) -> None:
        """Write what is left."""
        if self._pieces:
            write_shard(self._folder, self._settings, self._pieces, self._features, self._writer)
            self._pieces, self._features, self._bytes = [], [], 0


def stored_frames(folder: Path, settings: FeatureSettings) -> dict[tuple[str, str], tuple[int, Clip]]:
    """How many frames from the first on each clip has already, by its file's hash and its sampling.

    Raises:
        UserError: a shard is damaged or was made with other settings.
    """
    by_key: dict[str, list[Piece]] = {}
    for piece in stored_pieces(folder, settings):
        by_key.setdefault(piece.clip.key, []).append(piece)
    return {
        (pieces[0].clip.file_sha256, pieces[0].clip.sampling): (covered(pieces)[1], pieces[0].clip)
        for pieces in by_key.values()
    }


def _refuse(clip: Clip, features: torch.Tensor, dtype: str) -> None:
    largest = float(features.float().abs().max())
    if torch.isfinite(features).all():
        raise UserError(
            f"{clip.path}: a feature is {largest:.4g}, more than {dtype} holds; set data.storage.dtype to bfloat16"
        )
    raise UserError(f"{clip.path}: the tower gives features that are not finite; run it in 32-true precision")

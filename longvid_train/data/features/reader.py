"""Reads frames of a cache from memory-mapped shards. It pickles: each process maps the shards it needs itself."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from longvid_train.data.features.index import Entry, Part
from longvid_train.data.features.settings import times_sha256
from longvid_train.data.features.shards import OpenShard
from longvid_train.errors import UserError

MAX_OPEN_SHARDS = 64


class FeatureReader:
    """Frames and times of whole clips."""

    def __init__(self, folder: Path) -> None:
        """Read shards of ``folder``; the least recently used is unmapped when `MAX_OPEN_SHARDS` are mapped."""
        self._folder = folder
        self._open: OrderedDict[str, OpenShard] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the mapped files behind."""
        return {"_folder": self._folder, "_open": OrderedDict()}

    def frames(self, entry: Entry, numbers: Sequence[int]) -> torch.Tensor:
        """Features of some frames of a clip, in the order asked for; a number may repeat.

        Args:
            entry: of the index.
            numbers: at least one frame number, each below the clip's ``frame_count``.

        Returns:
            ``(len(numbers), 1 + P, C)`` in the storage type; only these frames are read, and their checksums verified.

        Raises:
            UserError: the shard is damaged; the message names it.
        """
        assert numbers and min(numbers) >= 0 and max(numbers) < entry.clip.frame_count, "frames outside the clip"
        runs: list[tuple[Part, list[int]]] = []
        for number in numbers:
            part = _part_of(entry, number)
            if not runs or runs[-1][0] != part:
                runs.append((part, []))
            runs[-1][1].append(number - part.first_frame)
        read = [self._shard(part.shard).read(_tensor_name(entry, part), rows) for part, rows in runs]
        return read[0] if len(read) == 1 else torch.cat(read)

    def times_s(self, entry: Entry) -> tuple[float, ...]:
        """Time of every frame of the clip.

        Raises:
            UserError: they are not those the clip's key was made from.
        """
        times: list[float] = []
        for part in entry.parts:
            piece = self._shard(part.shard).pieces[_tensor_name(entry, part)]
            times += piece.times_s[len(times) - part.first_frame :]
        if times_sha256(times) != entry.clip.times_sha256:
            raise UserError(f"{self._folder}: the frame times of '{entry.clip.path}' do not fit its key; make it again")
        return tuple(times)

    def _shard(self, name: str) -> OpenShard:
        shard = self._open.get(name)
        if shard is None:
            shard = self._open[name] = OpenShard(self._folder / name)
            if len(self._open) > MAX_OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(name)
        return shard


def _part_of(entry: Entry, number: int) -> Part:
    return next(part for part in entry.parts if number < part.first_frame + part.frame_count)


def _tensor_name(entry: Entry, part: Part) -> str:
    return f"{entry.clip.key}:{part.first_frame}"

"""The index of a cache: which clips are whole and where their frames are, gathered from the shards' own headers."""

import fcntl
import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from longvid_train.data.features.settings import VERSION, FeatureSettings, canonical_json, clip_key, settings_from_json
from longvid_train.data.features.shards import Clip, Piece, read_header, shard_paths
from longvid_train.errors import UserError
from longvid_train.files import write_text

INDEX_FILE = "index.json"
_LOCK_FILE = ".merge.lock"


@dataclass(frozen=True)
class Part:
    """Consecutive frames of a clip in one shard: ``first_frame`` to ``first_frame + frame_count``, without the end."""

    shard: str
    first_frame: int
    frame_count: int


@dataclass(frozen=True)
class Entry:
    """A whole clip and the parts that hold its frames, in order."""

    clip: Clip
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class FeatureIndex:
    """A cache's index.

    Attributes:
        folder: of the cache.
        settings: of the cache.
        entries: whole clips by key.
        unfinished: clips of which frames are missing.
        shards: size in bytes of each shard, by name.
    """

    folder: Path
    settings: FeatureSettings
    entries: dict[str, Entry]
    unfinished: int
    shards: dict[str, int]

    @property
    def frame_count(self) -> int:
        """Frames of all whole clips."""
        return sum(entry.clip.frame_count for entry in self.entries.values())


def merge_index(folder: Path) -> FeatureIndex | None:
    """Gather the index from the headers of all shards of ``folder`` and write it; None when there is no shard.

    Any number of processes may merge at any time: each reads all shards under a lock, so the last one lists everything.

    Raises:
        UserError: a shard is damaged, or two shards were made with different settings.
    """
    with _locked(folder):
        index = _gathered(folder)
        if index is not None:
            write_text(folder / INDEX_FILE, _to_text(index))
        return index


def read_index(folder: Path) -> FeatureIndex:
    """Read ``index.json`` and check it and the sizes of its shards.

    Raises:
        UserError: there is no index, it was changed, or a shard is missing or cut off.
    """
    path = folder / INDEX_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = values.pop("sha256")
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; name a folder that longvid predict wrote features to (its --run_dir)"
        ) from error
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: not an index of features ({error}); {_REMERGE}") from error
    if found != _digest(values):
        raise UserError(f"{path}: the index was changed after it was written; {_REMERGE}")
    if values["version"] != VERSION:
        raise UserError(
            f"{path}: the features have format {values['version']} and this version reads {VERSION}; make them again"
        )
    index = _from_json(folder, values)
    _check_shards(index)
    return index


def stored_pieces(folder: Path, settings: FeatureSettings) -> list[Piece]:
    """All pieces that shards of ``folder`` hold, after checking that they were made with ``settings``.

    Raises:
        UserError: a shard is damaged or was made with other settings.
    """
    pieces: list[Piece] = []
    for path in shard_paths(folder):
        header = read_header(path)
        check_same_settings(path, header.settings, settings, "this run would make them with")
        pieces += header.pieces
    return pieces


def covered(pieces: Iterable[Piece]) -> tuple[list[Piece], int]:
    """The pieces of one clip that give its frames from the first on, in order, and how many frames that is."""
    chosen: list[Piece] = []
    end = 0
    for piece in sorted(pieces, key=lambda piece: (piece.first_frame, -piece.end_frame)):
        if piece.first_frame <= end < piece.end_frame:
            chosen.append(piece)
            end = piece.end_frame
    return chosen, end


def check_same_settings(where: Path, found: FeatureSettings, wanted: FeatureSettings, wanted_by: str) -> None:
    """Refuse features made with other settings.

    Raises:
        UserError: naming the first difference with both values.
    """
    differing = found.differences(wanted)
    if differing:
        name, here, there = differing[0]
        more = f" (and {len(differing) - 1} more differ)" if len(differing) > 1 else ""
        raise UserError(
            f"{where}: the features were made with {name} = {here} and {wanted_by} {there}{more}; "
            "make features with these settings in another folder, or change the setting back"
        )


_REMERGE = "delete it and run the same longvid predict again: it merges the shards that are there"


def _gathered(folder: Path) -> FeatureIndex | None:
    by_clip: dict[str, list[tuple[str, Piece]]] = {}
    shards: dict[str, int] = {}
    settings: FeatureSettings | None = None
    for path in shard_paths(folder):
        header = read_header(path)
        settings = settings or header.settings
        check_same_settings(path, header.settings, settings, "another shard beside it with")
        shards[path.name] = path.stat().st_size
        for piece in header.pieces:
            by_clip.setdefault(piece.clip.key, []).append((path.name, piece))
    if settings is None:
        return None
    entries = {key: entry for key, pieces in by_clip.items() if (entry := _entry(pieces)) is not None}
    return FeatureIndex(folder, settings, entries, len(by_clip) - len(entries), shards)


def _entry(found: list[tuple[str, Piece]]) -> Entry | None:
    clip = found[0][1].clip
    shard_of = {id(piece): shard for shard, piece in found}
    pieces, end = covered(piece for _, piece in found)
    if end < clip.frame_count:
        return None
    return Entry(clip, tuple(Part(shard_of[id(piece)], piece.first_frame, len(piece.times_s)) for piece in pieces))


def _to_text(index: FeatureIndex) -> str:
    number = {name: position for position, name in enumerate(index.shards)}
    values = {
        "version": VERSION,
        "settings": asdict(index.settings),
        "shards": [[name, size] for name, size in index.shards.items()],
        "unfinished": index.unfinished,
        "clips": [
            {
                **entry.clip._asdict(),
                "parts": [[number[part.shard], part.first_frame, part.frame_count] for part in entry.parts],
            }
            for _, entry in sorted(index.entries.items())
        ],
    }
    values = json.loads(canonical_json(values))
    return canonical_json({**values, "sha256": _digest(values)}) + "\n"


def _from_json(folder: Path, values: dict[str, Any]) -> FeatureIndex:
    names = [name for name, _ in values["shards"]]
    settings = settings_from_json(values["settings"])
    entries = {}
    for clip_values in values["clips"]:
        parts = tuple(Part(names[shard], first, count) for shard, first, count in clip_values.pop("parts"))
        clip = Clip(**clip_values)
        if clip.key != clip_key(settings, clip.file_sha256, clip.sampling, clip.times_sha256):
            raise UserError(f"{folder / INDEX_FILE}: the key of '{clip.path}' does not fit what it was made from")
        entries[clip.key] = Entry(clip, parts)
    return FeatureIndex(folder, settings, entries, values["unfinished"], dict(values["shards"]))


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(values).encode()).hexdigest()


def _check_shards(index: FeatureIndex) -> None:
    for name, size in index.shards.items():
        path = index.folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            what = "the shard is missing" if found is None else f"the shard has {found} bytes instead of {size}"
            raise UserError(f"{path}: {what}; run the same longvid predict again: it makes only what is missing")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / _LOCK_FILE).open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield

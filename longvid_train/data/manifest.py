"""The one manifest format: a JSON Lines file, one sample a row (docs/data.md shows a row and lists every rule).

Reading parses and checks every row once and keeps 16 bytes of each (its byte offset and line number); a row is parsed
again when it is asked for. Repeated ids are looked for on disk. So a manifest of any size costs little memory, pickles
to a worker cheaply, and is whole from the start.
"""

import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

from longvid_train.data.repeats import Repeats
from longvid_train.data.row_checks import RowError, parse_sample
from longvid_train.errors import UserError
from longvid_train.files import atomic_path

MediaType = Literal["image", "video"]
Role = Literal["user", "assistant"]

_KNOWN_FILES = 1 << 16
"""Files whose existence is remembered while a manifest is read; rows about one file mostly stand together."""


@dataclass(frozen=True, kw_only=True)
class Media:
    """One image or video of a sample.

    Attributes:
        type: ``"image"`` or ``"video"``.
        path: POSIX path relative to the manifest's folder, or absolute.
        subtitles: path of an ``.srt`` or ``.vtt`` file, same rules; videos only.
        start_s: start of the part of the video that belongs to the sample, in seconds from the first frame.
        end_s: end of that part (exclusive); None means the end of the video.
    """

    type: MediaType
    path: str
    subtitles: str | None = None
    start_s: float = 0.0
    end_s: float | None = None


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation; ``<image>`` and ``<video>`` in a user's text stand for the media, in order."""

    role: Role
    text: str


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One row: media and the conversation about them.

    Attributes:
        id: unique within its manifest.
        conversation: turns that alternate user, assistant, starting with the user.
        media: what the placeholders stand for, in order; empty for a text-only row.
        source: the data set it came from.
        license: licence of the media and text.
        version: version of the source.
        meta: free JSON object, e.g. ``{"kind": "needle", "answer": "7"}``.
    """

    id: str
    conversation: tuple[Turn, ...]
    media: tuple[Media, ...] = ()
    source: str = ""
    license: str = ""
    version: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ManifestRules:
    """What a reader demands of a manifest beyond its schema.

    Attributes:
        require_answer: the last turn must be the assistant's (training and evaluation rows); False also allows
            questions without an answer.
        check_files: every media and subtitle file must exist when the manifest is read.
        allow_outside: relative paths may leave the manifest's folder by ``..``.
    """

    require_answer: bool = True
    check_files: bool = True
    allow_outside: bool = False


class Manifest:
    """A checked manifest file: ``len(manifest)``, ``manifest[i] -> Sample``, iteration in file order.

    Attributes:
        path: the file.
        sha256: hex digest of the file's bytes, for run records.
        rules: the rules it was read with.
    """

    def __init__(self, path: Path, rules: ManifestRules) -> None:
        """Read and check the whole file.

        Raises:
            UserError: the file is missing or empty, or a row breaks a rule (the message starts with ``file:line:``).
        """
        self.path = path
        self.rules = rules
        self._offsets = array("q")
        self._lines = array("q")
        self.sha256 = self._scan()
        self._version = _version(path)
        if not self._offsets:
            raise UserError(f"manifest '{path}' has no rows; write one JSON object a line")

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        if _version(self.path) != self._version:
            raise UserError(
                f"manifest '{self.path}' changed while it was in use; start again so that it is checked again"
            )
        with self.path.open("rb") as stream:
            stream.seek(self._offsets[index])
            raw = stream.readline()
        return self._parse(raw, self._lines[index])

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def line_number(self, index: int) -> int:
        """Line of row ``index`` in the file, counted from 1."""
        return self._lines[index]

    def resolve(self, path: str) -> Path:
        """Absolute path of a media or subtitle file named in a row."""
        return self.path.parent.absolute() / path

    def _scan(self) -> str:
        """Check every row, remember where each starts, and return the file's SHA-256."""
        digest = hashlib.sha256()
        is_file = lru_cache(maxsize=_KNOWN_FILES)(lambda path: self.resolve(path).is_file())
        offset = 0
        with _open_manifest(self.path) as stream, Repeats() as ids:
            for number, raw in enumerate(stream, start=1):
                digest.update(raw)
                if raw.strip():
                    sample = self._parse(raw, number)
                    if self.rules.check_files:
                        self._check_files(sample, number, is_file)
                    ids.add(sample.id, number)
                    self._offsets.append(offset)
                    self._lines.append(number)
                offset += len(raw)
            repeated = ids.first()
        if repeated is not None:
            self._fail(repeated.rows[1], _used_again(repeated.key, repeated.rows[0]))
        return digest.hexdigest()

    def _parse(self, raw: bytes, number: int) -> Sample:
        try:
            return sample_from_json(
                raw, require_answer=self.rules.require_answer, allow_outside=self.rules.allow_outside
            )
        except RowError as error:
            self._fail(number, str(error))

    def _check_files(self, sample: Sample, number: int, is_file: Callable[[str], bool]) -> None:
        for position, media in enumerate(sample.media):
            for key, path in (("path", media.path), ("subtitles", media.subtitles)):
                if path is not None and not is_file(path):
                    self._fail(
                        number, f"field 'media[{position}].{key}' names '{self.resolve(path)}', which is not a file"
                    )

    def _fail(self, number: int, message: str) -> NoReturn:
        raise UserError(f"{self.path}:{number}: {message}")


def _used_again(sample_id: str, line: int) -> str:
    return f"id '{sample_id}' was already used on line {line}; every row needs its own id"


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _open_manifest(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"manifest '{path}' cannot be read: {error.strerror}; name a JSON Lines file") from error


def read_manifest(path: str | Path, rules: ManifestRules | None = None) -> Manifest:
    """Read and check a manifest; see `Manifest`.

    Raises:
        UserError: ``file:line: what is wrong and what is allowed``.
    """
    return Manifest(Path(path), rules or ManifestRules())


def write_manifest(rows: Iterable[Sample], path: str | Path) -> int:
    """Write rows atomically and return how many; they can be read back with ``allow_outside`` and without answers.

    Raises:
        UserError: a row breaks a rule or repeats an id; nothing is written then.
    """
    target = Path(path)
    number = 0
    with atomic_path(target) as temporary, Repeats() as ids:
        with temporary.open("wb") as stream:
            for number, row in enumerate(rows, start=1):
                try:
                    raw = sample_to_json(row)
                    sample_from_json(raw, require_answer=False, allow_outside=True)
                except RowError as error:
                    raise UserError(f"{target}:{number} (not written): {error}") from error
                ids.add(row.id, number)
                stream.write(raw + b"\n")
        repeated = ids.first()
        if repeated is not None:
            raise UserError(f"{target}:{repeated.rows[1]} (not written): {_used_again(repeated.key, repeated.rows[0])}")
    return number


def sample_to_json(sample: Sample) -> bytes:
    """One manifest row, without the newline: fields that hold their default are left out.

    Raises:
        RowError: ``meta`` is not JSON or a text is not valid Unicode.
    """
    row: dict[str, Any] = {"id": sample.id}
    if sample.media:
        row["media"] = [_media_to_row(media) for media in sample.media]
    row["conversation"] = [{"role": turn.role, "text": turn.text} for turn in sample.conversation]
    row.update({key: getattr(sample, key) for key in ("source", "license", "version") if getattr(sample, key)})
    if sample.meta:
        row["meta"] = dict(sample.meta)
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (TypeError, ValueError) as error:
        raise RowError(f"row '{sample.id}' cannot be written as JSON: {error}") from error


def sample_from_json(raw: bytes, *, require_answer: bool, allow_outside: bool) -> Sample:
    """Parse and check one row.

    Raises:
        RowError: the row breaks a rule of the format.
    """
    row = parse_sample(raw, require_answer=require_answer, allow_outside=allow_outside)
    return Sample(
        id=row["id"],
        media=tuple(Media(**media) for media in row.get("media", ())),
        conversation=tuple(Turn(cast(Role, turn["role"]), turn["text"]) for turn in row["conversation"]),
        source=row.get("source", ""),
        license=row.get("license", ""),
        version=row.get("version", ""),
        meta=row.get("meta", {}),
    )


def _media_to_row(media: Media) -> dict[str, Any]:
    row: dict[str, Any] = {"type": media.type, "path": media.path}
    if media.subtitles is not None:
        row["subtitles"] = media.subtitles
    if media.start_s:
        row["start_s"] = media.start_s
    if media.end_s is not None:
        row["end_s"] = media.end_s
    return row

"""Rows of a manifest in chunks of the file: what breaks a rule, and what later steps need of each row."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from longvid_train.data.manifest import ManifestRules, Media, Sample, sample_from_json
from longvid_train.data.row_checks import PLACEHOLDER, RowError
from longvid_train.errors import UserError

CHUNK_BYTES = 2 << 20
CARDS = 12
"""Rows of a manifest that are shown in the overview."""

_ORIGINS = 50
"""Different sources, licences and versions that are told apart; the others are counted together."""

_ENCODER = json.JSONEncoder(separators=(",", ":"))


class Chunk(NamedTuple):
    """The lines of a manifest that start at byte ``start`` or later, and before ``end``."""

    path: str
    start: int
    end: int


class Line(NamedTuple):
    """A line that is not blank; ``number`` counts the lines of its chunk from 1."""

    number: int
    raw: bytes


class Card(NamedTuple):
    """A row chosen for the overview: those with the smallest digests of their ids are, on every machine."""

    digest: str
    line: int
    raw: bytes


class MediumUse(NamedTuple):
    """A media file as rows name it."""

    path: str
    type: str


class Window(NamedTuple):
    """A part of a video as rows name it; ``end_s`` is None for the end of the video."""

    path: str
    start_s: float
    end_s: float | None


class Origin(NamedTuple):
    """Where a row comes from."""

    source: str
    license: str
    version: str


@dataclass
class Tally:
    """Numbers of many rows; memory is bounded by the number of different values.

    Attributes:
        rows: rows that keep the rules.
        modalities: rows with a video, else with an image, else ``"text"``.
        turns: rows by number of turns.
        characters: rows by characters of conversation, to three digits.
        origins: rows by source, licence and version.
    """

    rows: int = 0
    modalities: "Counter[str]" = field(default_factory=Counter)
    turns: "Counter[int]" = field(default_factory=Counter)
    characters: "Counter[int]" = field(default_factory=Counter)
    origins: "Counter[Origin]" = field(default_factory=Counter)

    def add_row(self, sample: Sample) -> None:
        """Count one row."""
        self.rows += 1
        self.modalities[modality(sample)] += 1
        self.turns[len(sample.conversation)] += 1
        self.characters[three_digits(sum(len(turn.text) for turn in sample.conversation))] += 1
        self._add_origin(Origin(sample.source, sample.license, sample.version), 1)

    def merge(self, other: "Tally") -> None:
        """Add the numbers of other rows."""
        self.rows += other.rows
        self.modalities += other.modalities
        self.turns += other.turns
        self.characters += other.characters
        for origin, rows in other.origins.items():
            self._add_origin(origin, rows)

    def _add_origin(self, origin: Origin, rows: int) -> None:
        known = origin in self.origins or len(self.origins) < _ORIGINS
        self.origins[origin if known else Origin("(others)", "", "")] += rows


@dataclass
class ChunkFacts:
    """What a chunk holds; line numbers count from the chunk's first line.

    Attributes:
        lines: lines of the chunk.
        broken: line and message of rows that break a rule.
        ids: line and id.
        conversations: line and digest of media and conversation.
        questions: line and digest of a question with the media it is about.
        media: media files and the first line that names each.
        subtitles: subtitle files, likewise.
        windows: parts of videos, likewise.
        tally: numbers of the rows.
        cards: at most `CARDS` rows for the overview.
    """

    lines: int = 0
    broken: list[tuple[int, str]] = field(default_factory=list)
    ids: list[tuple[int, str]] = field(default_factory=list)
    conversations: list[tuple[int, str]] = field(default_factory=list)
    questions: list[tuple[int, str]] = field(default_factory=list)
    media: dict[MediumUse, int] = field(default_factory=dict)
    subtitles: dict[str, int] = field(default_factory=dict)
    windows: dict[Window, int] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    cards: list[Card] = field(default_factory=list)


def chunks(path: Path) -> Iterator[Chunk]:
    """Divide a manifest.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with path.open("rb"):
            size = path.stat().st_size
    except OSError as error:
        raise UserError(f"manifest '{path}' cannot be read: {error.strerror}; name a JSON Lines file") from error
    return (Chunk(str(path), start, min(start + CHUNK_BYTES, size)) for start in range(0, size, CHUNK_BYTES))


def lines_of(chunk: Chunk) -> Iterator[Line]:
    """The chunk's lines, blank ones too (``raw`` is then white space)."""
    with Path(chunk.path).open("rb") as stream:
        position = chunk.start
        if chunk.start:
            stream.seek(chunk.start - 1)
            position += len(stream.readline()) - 1
        number = 0
        while position < chunk.end:
            raw = stream.readline()
            if not raw:
                return
            number += 1
            position += len(raw)
            yield Line(number, raw)


def read_chunk(chunk: Chunk, rules: ManifestRules, *, questions: bool = True) -> ChunkFacts:
    """Check the rows of a chunk against the format; files are not looked at. Without ``questions`` none are noted."""
    facts = ChunkFacts()
    folder = str(Path(chunk.path).parent.absolute())
    for number, raw in lines_of(chunk):
        facts.lines = number
        if not raw.strip():
            continue
        try:
            sample = sample_from_json(raw, require_answer=rules.require_answer, allow_outside=rules.allow_outside)
        except RowError as error:
            facts.broken.append((number, str(error)))
            continue
        _note(facts, number, sample, folder, questions)
        facts.cards.append(Card(_digest(sample.id.encode("utf-8")), number, raw))
        if len(facts.cards) > 4 * CARDS:
            facts.cards = chosen(facts.cards)
    facts.cards = chosen(facts.cards)
    return facts


def chosen(cards: list[Card]) -> list[Card]:
    """The rows that are shown, of those given."""
    return sorted(cards)[:CARDS]


def modality(sample: Sample) -> str:
    """``"video"`` for a row with a video, else ``"image"`` for one with an image, else ``"text"``."""
    types = {medium.type for medium in sample.media}
    return "video" if "video" in types else "image" if types else "text"


def digest_of(value: object) -> str:
    """128 bits of BLAKE2b of a value of strings, numbers and lists, as text."""
    return _digest(_ENCODER.encode(value).encode("ascii"))


def three_digits(value: int) -> int:
    """Rounded to three digits: 12344 to 12300."""
    return int(float(f"{value:.2e}"))


def _digest(raw: bytes) -> str:
    return hashlib.blake2b(raw, digest_size=16).hexdigest()


def _note(facts: ChunkFacts, line: int, sample: Sample, folder: str, questions: bool) -> None:
    shown = [_shown(medium, folder) for medium in sample.media]
    facts.ids.append((line, sample.id))
    facts.conversations.append((line, digest_of([shown, [turn.text for turn in sample.conversation]])))
    asked = [turn.text for turn in sample.conversation if turn.role == "user"] if questions else []
    # A text-only follow-up ("Why?") says nothing without what was said before it.
    for text in asked if shown else asked[:1]:
        facts.questions.append((line, digest_of([shown, _normal(text)])))
    for medium, (path, *_) in zip(sample.media, shown, strict=True):
        facts.media.setdefault(MediumUse(path, medium.type), line)
        if medium.subtitles is not None:
            facts.subtitles.setdefault(str(Path(folder, medium.subtitles)), line)
        if medium.start_s or medium.end_s is not None:
            facts.windows.setdefault(Window(path, medium.start_s, medium.end_s), line)
    facts.tally.add_row(sample)


def _shown(medium: Media, folder: str) -> tuple[str, float, float | None]:
    return str(Path(folder, medium.path)), medium.start_s, medium.end_s


def _normal(text: str) -> str:
    return " ".join(PLACEHOLDER.sub(" ", text).casefold().split())

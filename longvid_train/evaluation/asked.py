"""What ``longvid ask --json`` printed, read back for the report."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longvid_train.data.media import MediaOptions
from longvid_train.errors import UserError
from longvid_train.evaluation.reading import field, read_json_object
from longvid_train.evaluation.samples import Strip, image_strip, read_strip

_REMEDY = "write it with longvid ask MEDIUM QUESTION --json > FILE"


@dataclass(frozen=True, kw_only=True)
class AskedTurn:
    """One question of a conversation; ``seconds`` is the sum of decoding, encoding and generating."""

    question: str
    answer: str
    frames: int
    visual_tokens: int
    prompt_tokens: int
    new_tokens: int
    seconds: float
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One call of ``longvid ask``: its questions in order and an even choice of the frames of each medium."""

    turns: tuple[AskedTurn, ...]
    strips: tuple[Strip, ...]


def read_asked(path: Path) -> Asked:
    """Read one JSON output of ``longvid ask`` and decode the frames it names.

    Raises:
        UserError: the file or a medium of it is missing or broken; the message names it.
    """
    row = read_json_object(path, _REMEDY)
    media = _objects(row, "media", str(path))
    return Asked(
        turns=_turns(row, str(path)), strips=tuple(_strip(medium, f"{path}: field 'media'") for medium in media)
    )


def _turns(row: dict[str, Any], where: str) -> tuple[AskedTurn, ...]:
    if "turns" not in row:
        return (_turn(row, where),)
    turns = _objects(row, "turns", where)
    return tuple(_turn(turn, f"{where}: turn {number}") for number, turn in enumerate(turns, start=1))


def _turn(row: Mapping[str, Any], where: str) -> AskedTurn:
    names = ("frames", "visual_tokens", "prompt_tokens", "new_tokens", "peak_bytes")
    return AskedTurn(
        question=field(row, "question", str, where),
        answer=field(row, "answer", str, where),
        seconds=float(field(row, "seconds", (int, float), where)),
        **{name: field(row, name, int, where) for name in names},
    )


def _strip(medium: Mapping[str, Any], where: str) -> Strip:
    path = Path(field(medium, "path", str, where))
    if field(medium, "type", str, where) == "image":
        return image_strip(path, MediaOptions())
    times_s = [_time(value, where) for value in field(medium, "timestamps_s", list, where)]
    return read_strip(path, times_s, MediaOptions())


def _objects(row: Mapping[str, Any], name: str, where: str) -> list[dict[str, Any]]:
    values: list[dict[str, Any]] = field(row, name, list, where)
    if not all(isinstance(value, dict) for value in values):
        raise UserError(f"{where}: field '{name}' must be a list of objects; {_REMEDY}")
    return values


def _time(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{where}: field 'timestamps_s' holds {value!r}; it must be a list of seconds; {_REMEDY}")
    return float(value)

"""What ``longvid ask --json`` printed, read back for the report."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longvid_train.data.media import MediaOptions
from longvid_train.errors import UserError
from longvid_train.evaluation.reading import field, read_json_object
from longvid_train.evaluation.samples import Strip, read_strip

_REMEDY = "write it with longvid ask VIDEO QUESTION --json > FILE"


@dataclass(frozen=True, kw_only=True)
class AskedTurn:
    """One question of a conversation; numbers that the file does not give for the turn are None."""

    question: str
    answer: str
    visual_tokens: int | None
    prompt_tokens: int | None
    new_tokens: int | None
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One call of ``longvid ask``.

    Attributes:
        path: the video or image, as given to ``ask``.
        timestamps_s: time of each frame shown.
        frames: frames shown.
        turns: the questions in order.
        seconds: for the whole call.
        peak_bytes: largest memory of the process.
        strip: frames for the page; None for a still image.
    """

    path: str
    timestamps_s: tuple[float, ...]
    frames: int
    turns: tuple[AskedTurn, ...]
    seconds: float
    peak_bytes: int
    strip: Strip | None


def read_asked(path: Path) -> Asked:
    """Read one JSON output of ``longvid ask`` and decode the frames it names.

    Raises:
        UserError: the file or its video is missing or broken; the message names it.
    """
    row = read_json_object(path, _REMEDY)
    where = str(path)
    video = _video(row, where)
    times_s = tuple(_time(value, where) for value in field(row, "timestamps_s", list, where))
    return Asked(
        path=video,
        timestamps_s=times_s,
        frames=_frames(row, where),
        turns=_turns(row, where),
        seconds=float(field(row, "seconds", (int, float), where)),
        peak_bytes=field(row, "peak_bytes", int, where),
        strip=read_strip(Path(video), times_s, MediaOptions()) if times_s else None,
    )


def _turns(row: dict[str, Any], where: str) -> tuple[AskedTurn, ...]:
    turns = row.get("turns")
    if not turns:
        return (_turn(row, where),)
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise UserError(f"{where}: field 'turns' must be a list of objects; {_REMEDY}")
    return tuple(_turn(turn, f"{where}: turn {number}") for number, turn in enumerate(turns, start=1))


def _turn(row: Mapping[str, Any], where: str) -> AskedTurn:
    counts = {
        name: field(row, name, int, where) if name in row else None
        for name in ("visual_tokens", "prompt_tokens", "new_tokens")
    }
    return AskedTurn(
        question=field(row, "question", str, where),
        answer=field(row, "answer", str, where),
        seconds=float(field(row, "seconds", (int, float), where)) if "seconds" in row else None,
        **counts,
    )


def _video(row: dict[str, Any], where: str) -> str:
    name = "video" if "video" in row else "path"
    return str(field(row, name, str, where))


def _frames(row: dict[str, Any], where: str) -> int:
    frames = field(row, "frames", (int, list), where)
    return len(frames) if isinstance(frames, list) else int(frames)


def _time(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{where}: field 'timestamps_s' holds {value!r}; it must be a list of seconds; {_REMEDY}")
    return float(value)

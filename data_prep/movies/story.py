"""The annotated story of a movie: which segment each paragraph of its synopsis tells (``annotation/ID.json``)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data_prep.fields import shown
from data_prep.outcome import BadRecordError


@dataclass(frozen=True)
class Segment:
    """One segment of the story.

    Attributes:
        start_s: where it starts, in seconds of the movie.
        end_s: where it ends.
        last_frame: its last frame's number, None if the annotation does not say.
        description: its paragraph, white space collapsed; empty if it has none.
    """

    start_s: float
    end_s: float
    last_frame: int | None
    description: str


def story_segments(annotation: Mapping[str, Any] | None) -> list[Segment]:
    """The segments that have times, in the order of the movie; none without an annotation.

    Raises:
        BadRecordError: the story is not a list of objects, or a segment's times are not in order.
    """
    story = (annotation or {}).get("story") or []
    if not isinstance(story, list) or not all(isinstance(entry, dict) for entry in story):
        raise BadRecordError("the annotated story is broken", shown(story))
    segments = [_segment(entry) for entry in story if entry.get("duration") is not None]
    return sorted(segments, key=lambda segment: (segment.start_s, segment.end_s))


def story_text(annotation: Mapping[str, Any] | None) -> str:
    """All paragraphs in the order of the movie; empty without any."""
    return "\n\n".join(segment.description for segment in story_segments(annotation) if segment.description)


def _segment(entry: Mapping[str, Any]) -> Segment:
    times_s = _two_numbers(entry, "duration")
    frames = None if entry.get("frame") is None else _two_numbers(entry, "frame")
    description = entry.get("description") or ""
    if not isinstance(description, str):
        raise BadRecordError("the annotated story is broken", f"{entry.get('id')}: description {shown(description)}")
    return Segment(*times_s, None if frames is None else int(frames[1]), " ".join(description.split()))


def _two_numbers(entry: Mapping[str, Any], name: str) -> tuple[float, float]:
    pair = entry[name]
    numbers = isinstance(pair, list) and len(pair) == 2 and all(_number(value) for value in pair)
    if not numbers or not 0 <= pair[0] < pair[1]:
        raise BadRecordError("the annotated story is broken", f"{entry.get('id')}: {name} {shown(pair)}")
    return float(pair[0]), float(pair[1])


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

"""Frames a second of a movie whose file is not published: MovieNet gives frame numbers, subtitles give seconds."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from data_prep.movies.story import story_segments
from data_prep.outcome import BadRecordError

_STANDARD_RATES = tuple(Fraction(rate) for rate in ("24000/1001", "24", "25", "30000/1001", "30"))
_WITHIN = 0.0005


@dataclass(frozen=True)
class FrameRate:
    """A rate and how it is known.

    Attributes:
        fps: frames a second.
        known_from: ``"annotation"`` (exact) or ``"runtime"`` (the running time in whole minutes: off by up to half a
            percent, half a minute at the end of a movie).
    """

    fps: Fraction
    known_from: Literal["annotation", "runtime"]


def frame_rate(meta: Mapping[str, Any], annotation: Mapping[str, Any] | None, frames: int) -> FrameRate:
    """The rate from the segments of ``annotation`` that give both frames and seconds, else from the running time.

    The public LLaMA-VID script always takes the running time.

    Args:
        meta: ``meta/MOVIE.json``.
        annotation: ``annotation/MOVIE.json``, or None.
        frames: frames of the movie.

    Raises:
        BadRecordError: neither file gives a rate, or it is not that of a movie.
    """
    found = _from_segments(annotation)
    rate = FrameRate(found, "annotation") if found else FrameRate(_from_runtime(meta, frames), "runtime")
    if not 10 <= rate.fps <= 70:
        raise BadRecordError(
            "the frame rate is not that of a movie",
            f"{frames} frames and the {rate.known_from} give {float(rate.fps):.3f}",
        )
    return rate


def _from_segments(annotation: Mapping[str, Any] | None) -> Fraction | None:
    """Frames over seconds at the latest end of a segment; snapped to a standard rate within 0.05 %."""
    ends = [(segment.last_frame, segment.end_s) for segment in story_segments(annotation) if segment.last_frame]
    if not ends:
        return None
    frame, seconds = max(ends)
    fps = Fraction(frame) / Fraction(seconds)
    nearest = min(_STANDARD_RATES, key=lambda rate: abs(fps / rate - 1))
    return nearest if abs(fps / nearest - 1) < _WITHIN else fps


def _from_runtime(meta: Mapping[str, Any], frames: int) -> Fraction:
    versions = meta.get("version")
    runtime = versions[0].get("runtime") if isinstance(versions, list) and versions else None
    minutes = re.search(r"\d+", runtime) if isinstance(runtime, str) else None
    if minutes is None or int(minutes[0]) == 0:
        raise BadRecordError(
            "the frame rate is unknown",
            "no segment of the annotation gives seconds, and meta has no version[0].runtime",
        )
    return Fraction(frames, int(minutes[0]) * 60)

"""Which sampled frame each subtitle line follows. Pure index maths."""

from bisect import bisect_left
from collections.abc import Sequence

from longvid_train.types import Subtitle


def lines_in_window(subtitles: Sequence[Subtitle], start_s: float, end_s: float | None) -> list[Subtitle]:
    """Lines on screen at any moment of ``[start_s, end_s)``, ordered by start time (ties as in the file)."""
    kept = [line for line in subtitles if line.end_s > start_s and (end_s is None or line.start_s < end_s)]
    return sorted(kept, key=lambda line: line.start_s)


def lines_after_frames(subtitles: Sequence[Subtitle], timestamps_s: Sequence[float]) -> tuple[tuple[str, ...], ...]:
    """Give every line to exactly one sampled frame.

    A line follows the first sampled frame at or after its start: what has come on screen since the previous sampled
    frame, up to and including this one. Lines that start after the last sampled frame follow the last one.

    Args:
        subtitles: lines ordered by start time.
        timestamps_s: time of each sampled frame in seconds, not decreasing, at least one.

    Returns:
        One tuple of texts a frame, white space within a line collapsed, blank lines left out.
    """
    lines: list[list[str]] = [[] for _ in timestamps_s]
    for subtitle in subtitles:
        text = " ".join(subtitle.text.split())
        if text:
            frame = min(bisect_left(timestamps_s, subtitle.start_s), len(lines) - 1)
            lines[frame].append(text)
    return tuple(tuple(texts) for texts in lines)

"""Subtitles of a movie, checked against its length and moved to the video's own time."""

from pathlib import Path

from data_prep.outcome import BadRecordError
from data_prep.subtitles import moved
from longvid_train.errors import UserError
from longvid_train.types import Subtitle
from longvid_train.video.subtitles import read_numbered_subtitles

LATE_S = 60.0
"""How far behind the end of the movie a line may start: credits differ, and a running time is in whole minutes."""


def movie_subtitles(path: Path, *, origin_s: float, end_s: float, encoding: str) -> list[Subtitle]:
    """The lines of an ``.srt`` file in the time of a video that starts at ``origin_s`` of the movie.

    Markup such as ``<i>`` and ``{\\an8}`` goes; so do lines that are blank then or are over before the video starts.

    Raises:
        BadRecordError: the file is broken, holds no line, or belongs to another cut of the movie (a line starts more
            than `LATE_S` behind its end); the detail holds ``file:line``.
    """
    try:
        numbered = read_numbered_subtitles(path, encoding=encoding)
    except UserError as error:
        raise BadRecordError("the subtitles are broken", str(error)) from error
    if not numbered:
        raise BadRecordError("the subtitles are broken", f"{path}: it holds no line")
    line, last = numbered[-1]
    if last.start_s > end_s + LATE_S:
        raise BadRecordError(
            "the subtitles are of another cut",
            f"{path}:{line}: a line at {last.start_s:.0f} s, but the movie ends at {end_s:.0f} s",
        )
    shifted = [moved(subtitle, origin_s) for _, subtitle in numbered if subtitle.end_s > origin_s]
    return [subtitle for subtitle in shifted if subtitle.text]

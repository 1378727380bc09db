"""Subtitles of a movie, checked against its length and moved to the video's own time."""

import re
from pathlib import Path

from data_prep.outcome import BadRecordError
from longvid_train.errors import UserError
from longvid_train.types import Subtitle
from longvid_train.video.subtitles import read_numbered_subtitles

LATE_S = 60.0
"""How far behind the end of the movie a line may start: credits differ, and a running time is in whole minutes."""

_MARKUP = re.compile(r"</?(?:[biu]|font)\b[^<>]*>|\{\\[^{}]*\}", re.IGNORECASE)


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
    moved = [_moved(subtitle, origin_s) for _, subtitle in numbered if subtitle.end_s > origin_s]
    return [subtitle for subtitle in moved if subtitle.text]


def _moved(subtitle: Subtitle, origin_s: float) -> Subtitle:
    lines = (" ".join(line.split()) for line in _MARKUP.sub("", subtitle.text).replace("\0", "").splitlines())
    text = "\n".join(line for line in lines if line)
    return Subtitle(max(0.0, subtitle.start_s - origin_s), subtitle.end_s - origin_s, text)

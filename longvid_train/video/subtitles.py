"""Subtitle files: SubRip (.srt), numbered blocks of a time line and text between blank lines, and WebVTT (.vtt)."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from longvid_train.errors import UserError
from longvid_train.video.webvtt import read_cues

if TYPE_CHECKING:
    from longvid_train.types import Subtitle

UTF_8 = "utf-8-sig"
_TIME = r"(\d{2,}):([0-5]\d):([0-5]\d)[,.](\d{3})"
_TIME_LINE = re.compile(rf"^{_TIME} +--> +{_TIME}(?: +.*)?$")


def read_subtitles(path: str | Path, *, encoding: str = UTF_8) -> "list[Subtitle]":
    """Read an ``.srt`` or ``.vtt`` file: UTF-8, a byte-order mark allowed, unless ``encoding`` names another.

    Returns:
        The subtitles in the order of their start, text lines joined by a newline.

    Raises:
        UserError: the file cannot be read or a block is broken; the message holds ``file:line``.
    """
    return [subtitle for _, subtitle in read_numbered_subtitles(path, encoding=encoding)]


def read_numbered_subtitles(path: str | Path, *, encoding: str = UTF_8) -> "list[tuple[int, Subtitle]]":
    """As `read_subtitles`, each subtitle with the line of its times in the file, counted from 1."""
    from longvid_train.types import Subtitle  # imports torch, which the isolated process must not

    lines = _lines(Path(path), encoding)
    if Path(path).suffix.lower() == ".vtt":
        cues = [(line, Subtitle(start_s, end_s, text)) for line, start_s, end_s, text in read_cues(str(path), lines)]
        return sorted(cues, key=lambda entry: entry[1].start_s)
    numbered: list[tuple[int, Subtitle]] = []
    at = 0
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        start_s, end_s = _times(path, lines, at)
        text_end = at + 2
        while text_end < len(lines) and lines[text_end].strip():
            text_end += 1
        text = "\n".join(line.strip() for line in lines[at + 2 : text_end])
        numbered.append((at + 2, Subtitle(start_s, end_s, text)))
        at = text_end
    return sorted(numbered, key=lambda entry: entry[1].start_s)


def _lines(path: Path, encoding: str) -> list[str]:
    try:
        return path.read_text(encoding=encoding).splitlines()
    except UnicodeDecodeError as error:
        name = "UTF-8" if encoding == UTF_8 else encoding
        raise UserError(f"{path}: byte {error.start} is not {name}; convert the subtitles to UTF-8") from error
    except LookupError as error:
        raise UserError(f"{path}: '{encoding}' is no encoding; name one that Python knows, e.g. cp1252") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _times(path: str | Path, lines: list[str], at: int) -> tuple[float, float]:
    if not lines[at].strip().isdecimal():
        raise UserError(f"{path}:{at + 1}: '{lines[at].strip()}' is not a subtitle number; a block starts with one")
    match = _TIME_LINE.match(lines[at + 1].strip()) if at + 1 < len(lines) else None
    if match is None:
        raise UserError(f"{path}:{at + 2}: expected 'HH:MM:SS,mmm --> HH:MM:SS,mmm' after the subtitle number")
    numbers = [int(group) for group in match.groups()]
    start_s, end_s = _seconds(numbers[:4]), _seconds(numbers[4:])
    if end_s < start_s:
        raise UserError(f"{path}:{at + 2}: the subtitle ends before it starts")
    return start_s, end_s


def _seconds(parts: list[int]) -> float:
    hours, minutes, seconds, milliseconds = parts
    return ((hours * 60 + minutes) * 60 + seconds) + milliseconds / 1000

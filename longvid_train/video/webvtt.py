"""WebVTT (.vtt) files (W3C WebVTT): cues behind a ``WEBVTT`` header; comments, styles and regions are passed over."""

import html
import re
from collections.abc import Iterator, Sequence

from longvid_train.errors import UserError

HEADER = "WEBVTT"
_TIME = r"(?:(\d{2,}):)?([0-5]\d):([0-5]\d)\.(\d{3})"
_TIME_LINE = re.compile(rf"^{_TIME}[ \t]+-->[ \t]+{_TIME}(?:[ \t]+.*)?$")
_TAG = re.compile(r"</?(?:[a-z]+[^<>]*|\d[\d:.]*)>|</>")
_NO_CUE = re.compile(r"^(?:NOTE|STYLE|REGION)(?:[ \t]|$)")


def read_cues(path: str, lines: Sequence[str]) -> Iterator[tuple[int, float, float, str]]:
    """Yield (line of the times, start in seconds, end in seconds, text) of every cue, in the order of the file.

    Tags (``<v Ann>``, ``<c>``, ``<00:00:01.000>``) are left out, character references such as ``&amp;`` are resolved.

    Args:
        path: stands in front of messages.
        lines: the lines of the file.

    Raises:
        UserError: ``file:line: what is wrong``.
    """
    if not lines or not re.match(rf"{HEADER}(?:[ \t]|$)", lines[0]):
        raise UserError(f"{path}:1: a WebVTT file starts with '{HEADER}'; is it another format?")
    for start, block in _blocks(lines):
        if start > 0 and not _NO_CUE.match(block[0]):
            yield _cue(path, start, block)


def _blocks(lines: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Runs of lines that are not blank, each with the index of its first."""
    block: list[str] = []
    for index, line in enumerate([*lines, ""]):
        if line.strip():
            block.append(line)
        elif block:
            yield index - len(block), block
            block = []


def _cue(path: str, start: int, block: list[str]) -> tuple[int, float, float, str]:
    named = 0 if "-->" in block[0] else 1
    number = start + named + 1
    match = _TIME_LINE.match(block[named].strip()) if named < len(block) else None
    if match is None:
        raise UserError(f"{path}:{number}: expected 'HH:MM:SS.mmm --> HH:MM:SS.mmm'")
    start_s, end_s = _seconds(match.groups()[:4]), _seconds(match.groups()[4:])
    if end_s < start_s:
        raise UserError(f"{path}:{number}: the subtitle ends before it starts")
    text = "\n".join(html.unescape(_TAG.sub("", line)).strip() for line in block[named + 1 :])
    return number, start_s, end_s, text


def _seconds(parts: Sequence[str | None]) -> float:
    hours, minutes, seconds, milliseconds = (int(part or 0) for part in parts)
    return ((hours * 60 + minutes) * 60 + seconds) + milliseconds / 1000

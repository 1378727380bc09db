"""Shot files: one shot a line, ``FIRST LAST KEY KEY KEY``, frame numbers of the movie counted from 0.

The layout of MovieNet's shot detection (``shot/tt0120338.txt``, also published as ``shot_movie318``).
"""

from dataclasses import dataclass
from pathlib import Path

from data_prep.outcome import BadRecordError, MissingMediaError


@dataclass(frozen=True)
class Shot:
    """One shot.

    Attributes:
        first: its first frame.
        last: its last frame.
        key_frames: the frames that were saved as pictures, not decreasing; a short shot names one several times.
    """

    first: int
    last: int
    key_frames: tuple[int, ...]


def read_shots(path: Path) -> tuple[Shot, ...]:
    """Read a shot file.

    Raises:
        MissingMediaError: there is no such file.
        BadRecordError: a line is no shot, or stands before the one above it; the detail holds ``file:line``.
    """
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except FileNotFoundError as error:
        raise MissingMediaError("the shot file is missing", str(path)) from error
    except UnicodeDecodeError as error:
        raise BadRecordError("the shot file is broken", f"{path}: byte {error.start} is no digit") from error
    shots: list[Shot] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            shots.append(_shot(f"{path}:{number}", line, shots[-1] if shots else None))
    if not shots:
        raise BadRecordError("the shot file is broken", f"{path}: it holds no shot")
    return tuple(shots)


def _shot(where: str, line: str, before: Shot | None) -> Shot:
    words = line.split()
    if len(words) < 3 or not all(word.isdecimal() for word in words):
        raise BadRecordError("the shot file is broken", f"{where}: expected FIRST LAST KEY..., found '{line[:60]}'")
    first, last, *keys = map(int, words)
    if not first <= last or sorted(keys) != keys or keys[0] < first or keys[-1] > last:
        raise BadRecordError("the shot file is broken", f"{where}: the frames of '{line[:60]}' are not in order")
    if before is not None and first < before.last:
        raise BadRecordError(
            "the shot file is broken",
            f"{where}: the shot starts at frame {first}, before {before.last}, the last above",
        )
    return Shot(first, last, tuple(keys))

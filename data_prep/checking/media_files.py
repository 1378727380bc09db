"""One media or subtitle file: whether it is there and can be read, and how long a video is."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data_prep.checking.media_table import Use
from longvid_train.errors import UserError
from longvid_train.files import sha256_file
from longvid_train.video import AtTimes, DecodeLimits, UniformFrames, probe, read_clip, read_image, read_subtitles

WINDOW_SLACK_S = 1.0
"""How far a row's part of a video may reach behind the video's end: data sets round their times."""

_DECODED_EDGE = 32
_FRAMES_AT_ONCE = 2048


@dataclass(frozen=True)
class Decoding:
    """How media are tried.

    Attributes:
        frames: frames of a video to decode, evenly spaced from the first to the last; None: all; 0: none, and nothing
            is opened.
        isolated: decode in a process that is killed when it takes too much time or memory, or crashes.
    """

    frames: int | None = 3
    isolated: bool = True

    @classmethod
    def parse(cls, text: str) -> "Decoding":
        """``none``, ``sampled:K`` or ``full``.

        Raises:
            UserError: it is none of them.
        """
        if text in ("none", "full"):
            return cls(frames=0 if text == "none" else None)
        match = re.fullmatch(r"sampled:([1-9]\d{0,5})", text)
        if match is None:
            raise UserError(f"--decode {text} must be none, sampled:K or full, e.g. --decode sampled:3")
        return cls(frames=int(match[1]))


class FileFacts(NamedTuple):
    """What is known of a file.

    Attributes:
        use: the file.
        kind: kind of the finding; None: nothing is wrong.
        message: of the finding.
        size_bytes: of the file; 0 if it is not there.
        duration_s: of a video that was opened.
    """

    use: Use
    kind: str | None = None
    message: str = ""
    size_bytes: int = 0
    duration_s: float | None = None


def check_file(use: Use, decoding: Decoding, limits: DecodeLimits) -> FileFacts:
    """Look at one file."""
    path = Path(use.path)
    try:
        size_bytes = path.stat().st_size
    except OSError as error:
        return FileFacts(use, "missing_file", f"'{path}': {error.strerror}")
    if not path.is_file():
        return FileFacts(use, "missing_file", f"'{path}' is not a file")
    try:
        duration_s = _try(use, decoding, limits)
    except UserError as error:
        kind = "bad_subtitles" if use.type == "subtitles" else "unreadable_media"
        return FileFacts(use, kind, str(error), size_bytes)
    return FileFacts(use, None, "", size_bytes, duration_s)


def content(path: str) -> tuple[str, str | None]:
    """A file and its SHA-256; None if it can no longer be read."""
    try:
        return path, sha256_file(Path(path))
    except OSError:
        return path, None


def _try(use: Use, decoding: Decoding, limits: DecodeLimits) -> float | None:
    """Decode as far as asked for; the length of a video that was opened."""
    if use.type == "subtitles":
        read_subtitles(use.path)
        return None
    if decoding.frames == 0:
        return None
    if use.type == "image":
        read_image(use.path, limits=limits)
        return None
    if decoding.frames is None:
        return _decode_all(use.path, decoding, limits)
    sampling = UniformFrames(count=decoding.frames, at_most=True)
    clip = read_clip(
        use.path, sampling, isolated=decoding.isolated, limits=limits, shortest_edge=_DECODED_EDGE, workers=1
    )
    return clip.duration_s


def _decode_all(path: str, decoding: Decoding, limits: DecodeLimits) -> float:
    info = probe(path, isolated=decoding.isolated, limits=limits)
    times_s = info.timestamps_s.tolist()
    for first in range(0, len(times_s), _FRAMES_AT_ONCE):
        part = AtTimes(times_s=tuple(times_s[first : first + _FRAMES_AT_ONCE]))
        read_clip(path, part, isolated=decoding.isolated, limits=limits, shortest_edge=_DECODED_EDGE, workers=1)
    return info.duration_s

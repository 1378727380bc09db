"""Which reader and which way of reading is right for a file, by container and codec as probed, never by its name.

Measured against a sequential decode of files with the frame number painted in (docs/video.md, tests/video):

* Seeking is exact in MP4/QuickTime and Matroska/WebM. AVI has no presentation times for B-frames, MPEG-TS and MPEG-PS
  seek by bytes, and a GIF has one keyframe: those are read in order from the start.
* decord seeks wrongly with open GOPs, HEVC and MPEG-4 B-frames, cannot decode AV1 and GIF, returns
  wrong frames of MPEG-TS, and fails on pictures turned by 90 or 270 degrees.
"""

import importlib.util
from enum import Enum

from longvid_train.errors import UserError, nearest
from longvid_train.video.index import FrameIndex
from longvid_train.video.info import VideoInfo


class Access(Enum):
    """How the frames of a container are found."""

    SEEK = "seek"
    """Seek to the keyframe before; frames are told apart by their presentation time."""
    IN_ORDER = "in_order"
    """Decode from the start; frames are told apart by their presentation time."""
    BY_COUNT = "by_count"
    """Decode from the start and count: the container's presentation times are absent or wrong."""


READERS = ("auto", "pyav", "decord")
_SEEKABLE = frozenset({"mov", "matroska"})
_WITHOUT_TIMES = frozenset({"avi", "h264", "hevc", "m4v", "mpegvideo", "obu"})
_DECORD_CODECS = frozenset({"h264", "vp9"})


def access(container: str) -> Access:
    """How to read a container.

    Args:
        container: FFmpeg's name of the demuxer, e.g. ``"mov,mp4,m4a,3gp,3g2,mj2"``.
    """
    name = container.split(",")[0]
    if name in _SEEKABLE:
        return Access.SEEK
    return Access.BY_COUNT if name in _WITHOUT_TIMES else Access.IN_ORDER


def decord_is_right(info: VideoInfo, index: FrameIndex) -> bool:
    """Whether decord returns the right frames of this file."""
    seekable = access(info.container) is Access.SEEK
    keeps_size = info.rotation_deg in (0, 180)
    return seekable and keeps_size and info.codec in _DECORD_CODECS and index.is_closed_gop()


def choose(reader: str, info: VideoInfo, index: FrameIndex) -> str:
    """Name of the reader to use: ``"pyav"`` or ``"decord"``.

    ``"auto"`` is PyAV: it is right wherever decord is, and faster (docs/video.md).

    Raises:
        UserError: the reader is unknown, not installed, or wrong for this file.
    """
    if reader not in READERS:
        raise UserError(
            f"reader '{reader}' is not known{nearest(reader, READERS) or '.'} Use one of {', '.join(READERS)}"
        )
    if reader != "decord":
        return "pyav"
    if importlib.util.find_spec("decord") is None:
        raise UserError(
            "reader 'decord' is not installed; install decord (Linux x86-64 and Windows only) or use reader 'pyav'"
        )
    if not decord_is_right(info, index):
        raise UserError(
            f"{info.path}: decord is only right for H.264 and VP9 in MP4 or Matroska with closed GOPs, not turned by "
            f"90 degrees (this is {info.codec} in {info.container.split(',')[0]}); use reader 'pyav'"
        )
    return "decord"

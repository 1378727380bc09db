"""``read_clip`` and ``probe``: the way from a file to frames."""

from typing import TYPE_CHECKING

from longvid_train.video.info import VideoInfo
from longvid_train.video.limits import DecodeLimits
from longvid_train.video.pyav_reader import decode, describe
from longvid_train.video.sampling import Sampling, select

if TYPE_CHECKING:
    from longvid_train.types import VideoClip


def probe(path: str, *, limits: DecodeLimits = DecodeLimits()) -> VideoInfo:  # noqa: B008 - frozen
    """Return what is known of the file without decoding it."""
    return describe(str(path), limits)[0]


def read_clip(
    path: str,
    sampling: Sampling,
    *,
    reader: str = "auto",
    isolated: bool = False,
    limits: DecodeLimits = DecodeLimits(),  # noqa: B008 - frozen
    shortest_edge: int | None = None,
    exact: bool = True,
) -> "VideoClip":
    """Decode the frames that ``sampling`` selects."""
    from longvid_train.types import VideoClip  # imports torch, which the isolated process must not

    info, index = describe(str(path), limits)
    indices = select(sampling, info.timestamps_s, info.duration_s)
    frames = decode(str(path), limits, info, index, indices, shortest_edge)
    return VideoClip(
        frames=frames,
        timestamps_s=info.timestamps_s[indices],
        duration_s=info.duration_s,
        reader="pyav",
        path=str(path),
    )

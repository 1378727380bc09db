"""What a probe knows of a video file without decoding it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoInfo:
    """One probed file.

    Attributes:
        path: the file.
        container: FFmpeg's name of the demuxer, e.g. ``"mov,mp4,m4a,3gp,3g2,mj2"``.
        codec: name of the codec, e.g. ``"h264"``.
        width: pixels across, upright.
        height: pixels down, upright.
        rotation_deg: counter-clockwise turn that makes the stored picture upright: 0, 90, 180 or 270.
        timestamps_s: ``(n,)`` float64, presentation time of every frame counted from the first.
        duration_s: from the first frame to the end of the last.
    """

    path: str
    container: str
    codec: str
    width: int
    height: int
    rotation_deg: int
    timestamps_s: NDArray[np.float64]
    duration_s: float

    @property
    def frame_count(self) -> int:
        """Frames of the file."""
        return len(self.timestamps_s)

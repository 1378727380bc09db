"""The frames of a file in presentation order, learnt without decoding.

Units: ``pts`` and ``dts`` count ``time_base`` seconds.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream
from numpy.typing import NDArray

from longvid_train.errors import UserError


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameIndex:
    """Every frame of one video stream.

    Attributes:
        pts: ``(n,)`` int64, increasing: presentation time of each frame.
        keyframe_pts: ``(k,)`` int64, increasing: where decoding may start.
        end_pts: end of the last frame.
        time_base: seconds of one unit.
    """

    pts: NDArray[np.int64]
    keyframe_pts: NDArray[np.int64]
    end_pts: int
    time_base: Fraction

    @property
    def timestamps_s(self) -> NDArray[np.float64]:
        """``(n,)`` float64 seconds counted from the first frame."""
        return (self.pts - self.pts[0]) * float(self.time_base)

    @property
    def duration_s(self) -> float:
        """Seconds from the first frame to the end of the last."""
        return float((self.end_pts - int(self.pts[0])) * self.time_base)


def scan(path: str, container: InputContainer, stream: VideoStream) -> FrameIndex:
    """Read every packet header of the stream once.

    Raises:
        UserError: there are no frames, or the file cannot be read to its end.
    """
    pts: list[int] = []
    keyframes: list[int] = []
    durations: dict[int, int] = {}
    try:
        for packet in container.demux(stream):
            if packet.size == 0 or packet.pts is None:
                continue
            if packet.is_keyframe:
                keyframes.append(packet.pts)
            if not packet.is_discard:
                pts.append(packet.pts)
                durations[packet.pts] = packet.duration or 0
    except FFmpegError as error:
        raise UserError(
            f"{path}: cannot be read beyond frame {len(pts)} ({error.strerror}); the file is damaged"
        ) from error
    if not pts or stream.time_base is None:
        raise UserError(f"{path}: its video stream holds no frames")
    ordered = np.unique(np.asarray(pts, dtype=np.int64))
    last = int(ordered[-1])
    step = durations[last] or (int(ordered[-1] - ordered[-2]) if len(ordered) > 1 else 1)
    return FrameIndex(
        pts=ordered,
        keyframe_pts=np.unique(np.asarray(keyframes, dtype=np.int64)),
        end_pts=last + step,
        time_base=stream.time_base,
    )

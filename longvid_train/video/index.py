"""The frames of a file in presentation order, learnt without keeping any picture.

Units: ``pts`` and ``dts`` count ``time_base`` seconds. Three ways to learn them, from fast to slow: the sample table
of an MP4 (`from_table`), the headers of all packets (`from_packets`), and decoding everything (`from_decoding`).
"""

from dataclasses import dataclass
from fractions import Fraction
from itertools import islice

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.stream import VideoStream
from numpy.typing import NDArray

from longvid_train.errors import UserError

_HEAD_PACKETS = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameIndex:
    """Every frame of one video stream.

    Attributes:
        pts: ``(n,)`` int64, increasing: presentation time of each frame.
        seek_pts: ``(k,)`` int64, increasing: presentation times of the keyframes, where decoding may start. Estimates
            when ``estimated``: a reader checks where it landed, and starts one keyframe earlier if that was too late.
        estimated: the sample table holds decoding times, and presentation times were inferred from them.
        open_gop: whether frames shown before a keyframe are stored after it; None if not known.
        end_pts: end of the last frame.
        time_base: seconds of one unit.
    """

    pts: NDArray[np.int64]
    seek_pts: NDArray[np.int64]
    estimated: bool
    open_gop: bool | None
    end_pts: int
    time_base: Fraction

    @property
    def timestamps_s(self) -> NDArray[np.float64]:
        """``(n,)`` float64 seconds counted from the first frame."""
        return np.asarray((self.pts - self.pts[0]) * float(self.time_base), dtype=np.float64)

    @property
    def duration_s(self) -> float:
        """Seconds from the first frame to the end of the last."""
        return float((self.end_pts - int(self.pts[0])) * self.time_base)

    def is_closed_gop(self) -> bool:
        """Whether every group of pictures is known to decode by itself."""
        return self.open_gop is False


def from_table(container: InputContainer, stream: VideoStream) -> FrameIndex | None:
    """The index of a constant-rate MP4 from its sample table, without reading the packets; None where that is not
    certain.

    The table holds decoding times. They are trusted when it is complete, its steps are all equal, nothing is cut by
    an edit list, the first packets fill the grid ``first + k * step`` and the last packets end on it: n distinct
    presentation times on n grid points then leave no other order. The container is left at an arbitrary position.
    """
    entries = stream.index_entries
    n = len(entries)
    if n < 2 or n != stream.frames or stream.time_base is None:
        return None
    dts, keys, discards = np.array(
        [(entry.timestamp, entry.is_keyframe, entry.is_discard) for entry in entries], dtype=np.int64
    ).T
    steps = np.diff(dts)
    step = int(steps[0])
    if step <= 0 or bool((steps != step).any()) or bool(discards.any()) or not keys[0]:
        return None
    key_dts = dts[keys == 1]
    ends = _grid_ends(container, stream, n, step, int(key_dts[-1]))
    if ends is None:
        return None
    first, delay = ends
    return FrameIndex(
        pts=first + step * np.arange(n, dtype=np.int64),
        seek_pts=key_dts + delay,
        estimated=True,
        open_gop=None,
        end_pts=first + step * n,
        time_base=stream.time_base,
    )


def _grid_ends(
    container: InputContainer, stream: VideoStream, n: int, step: int, last_key: int
) -> tuple[int, int] | None:
    """First presentation time and delay of the first packet, if the first and last packets lie on the grid; else
    None."""
    packets = list(islice(container.demux(stream), min(n, _HEAD_PACKETS)))
    head = [packet.pts for packet in packets if packet.size and packet.pts is not None]
    if len(head) < len(packets) or packets[0].dts is None:
        return None
    first = min(head)
    # The last packets of the head may be shown after packets beyond it: the first half of the grid must be full.
    full = min(n, len(head)) if len(head) == n else len(head) // 2
    if sorted(head)[:full] != [first + step * k for k in range(full)]:
        return None
    container.seek(last_key, stream=stream)
    tail = [packet.pts for packet in container.demux(stream) if packet.size and packet.pts is not None]
    if not tail or max(tail) != first + step * (n - 1):
        return None
    return first, head[0] - packets[0].dts


def from_packets(path: str, container: InputContainer, stream: VideoStream) -> FrameIndex | None:
    """The index from every packet's header; None if the packets do not carry distinct presentation times.

    Frames before the first keyframe cannot be decoded and are not counted.

    Raises:
        UserError: the file cannot be read to its end.
    """
    shown: list[int] = []
    keys: list[int] = []
    durations: dict[int, int] = {}
    open_gop = False
    try:
        for packet in container.demux(stream):
            if packet.size == 0 or _is_hidden_vp8(stream, packet):
                continue
            if packet.pts is None:
                return None
            if packet.is_keyframe:
                keys.append(packet.pts)
            if not keys or packet.pts < keys[0]:
                continue
            open_gop = open_gop or packet.pts < keys[-1]
            if not packet.is_discard:
                shown.append(packet.pts)
                durations[packet.pts] = packet.duration or 0
    except FFmpegError as error:
        raise UserError(
            f"{path}: cannot be read beyond frame {len(shown)} ({error.strerror}); the file is damaged"
        ) from error
    if not shown or len(durations) < len(shown) or stream.time_base is None:
        return None
    pts = np.sort(np.asarray(shown, dtype=np.int64))
    return FrameIndex(
        pts=pts,
        seek_pts=np.unique(np.asarray(keys, dtype=np.int64)),
        estimated=False,
        open_gop=open_gop,
        end_pts=int(pts[-1]) + (durations[int(pts[-1])] or _last_step(pts, stream)),
        time_base=stream.time_base,
    )


def from_decoding(path: str, container: InputContainer, stream: VideoStream) -> FrameIndex:
    """The index from decoding every frame in order, for containers without usable presentation times.

    Frames are ``1 / rate`` apart where their times are absent or repeat.

    Raises:
        UserError: there are no frames, or one cannot be decoded.
    """
    times: list[int | None] = []
    stream.thread_type = "AUTO"
    try:
        times.extend(frame.pts for frame in container.decode(stream))
    except FFmpegError as error:
        raise UserError(
            f"{path}: cannot be decoded beyond frame {len(times)} ({error.strerror}); the file is damaged"
        ) from error
    if not times or stream.time_base is None:
        raise UserError(f"{path}: its video stream holds no frames that can be decoded")
    known = sorted({time for time in times if time is not None})
    if len(known) == len(times):
        pts, time_base = np.asarray(known, dtype=np.int64), stream.time_base
        step = _last_step(pts, stream)
    else:
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        pts, time_base, step = np.arange(len(times), dtype=np.int64), 1 / rate, 1
    return FrameIndex(
        pts=pts, seek_pts=pts[:1], estimated=False, open_gop=None, end_pts=int(pts[-1]) + step, time_base=time_base
    )


def _last_step(pts: NDArray[np.int64], stream: VideoStream) -> int:
    if len(pts) > 1:
        return int(pts[-1] - pts[-2])
    rate = stream.average_rate or stream.guessed_rate
    return max(1, round(1 / (rate * (stream.time_base or 1)))) if rate else 1


def _is_hidden_vp8(stream: VideoStream, packet: "Packet[VideoStream]") -> bool:
    """VP8's alternate reference frames are packets that show nothing (RFC 6386, 9.1: show_frame is bit 4)."""
    return stream.codec_context.codec.canonical_name == "vp8" and not memoryview(packet)[0] >> 4 & 1

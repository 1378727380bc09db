"""A probed file: what every reader needs to fetch frames of it."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from longvid_train.errors import UserError
from longvid_train.video.container import is_remote, opened
from longvid_train.video.index import FrameIndex, from_decoding, from_packets, from_table
from longvid_train.video.info import VideoInfo
from longvid_train.video.limits import DecodeLimits
from longvid_train.video.routing import Access, access
from longvid_train.video.truncation import missing_bytes


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """One probed file.

    Attributes:
        info: what is shown to callers.
        index: its frames, aligned with ``info.timestamps_s``.
        access: how to find a frame.
        limits: what reading may cost.
    """

    info: VideoInfo
    index: FrameIndex
    access: Access
    limits: DecodeLimits

    @property
    def path(self) -> str:
        """The file."""
        return self.info.path

    def size(self, shortest_edge: int | None) -> tuple[int, int]:
        """Upright ``(width, height)`` with the shorter side at most ``shortest_edge``; frames are never enlarged."""
        width, height = self.info.width, self.info.height
        if shortest_edge is None or shortest_edge >= min(width, height):
            return width, height
        scale = shortest_edge / min(width, height)
        return max(1, round(width * scale)), max(1, round(height * scale))


class Reader(Protocol):
    """Fetches frames of a probed file by index."""

    name: str

    def __init__(self, workers: int | None = None) -> None:
        """Decode with up to ``workers`` threads; None takes the cores this process may run on."""

    def read(self, source: Source, indices: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.uint8]:
        """Decode frames.

        Args:
            source: the probed file.
            indices: ``(N,)`` int64, strictly increasing, into ``source.index.pts``.
            size: upright ``(width, height)`` of the output.

        Returns:
            ``(N, height, width, 3)`` uint8 RGB, upright.

        Raises:
            UserError: a frame cannot be decoded.
        """
        ...


def open_source(path: str, limits: DecodeLimits, *, full_scan: bool = False) -> Source:
    """Probe a file: index its frames and decode the first one for its size and rotation.

    Args:
        path: the file.
        limits: what reading may cost.
        full_scan: read every packet's header even where the sample table would do (it tells closed GOPs from open
            ones).

    Raises:
        UserError: the file is not a whole, readable video within the limits.
    """
    with opened(path, limits) as (container, stream):
        _check_whole(path, container, stream)
        way, index = _index(path, container, stream, limits, full_scan)
    limits.check_duration(path, index.duration_s)
    with opened(path, limits) as (container, stream):
        first = _first_frame(path, container, stream)
        rotation = round(first.rotation / 90) * 90 % 360
        width, height = (first.width, first.height) if rotation % 180 == 0 else (first.height, first.width)
        info = VideoInfo(
            path=path,
            container=container.format.name,
            codec=stream.codec_context.codec.canonical_name,
            width=width,
            height=height,
            rotation_deg=rotation,
            timestamps_s=index.timestamps_s,
            duration_s=index.duration_s,
        )
    return Source(info=info, index=index, access=way, limits=limits)


def _index(
    path: str, container: InputContainer, stream: VideoStream, limits: DecodeLimits, full_scan: bool
) -> tuple[Access, FrameIndex]:
    way = access(container.format.name)
    index = None
    if way is Access.SEEK and not full_scan:
        index = from_table(container, stream)
    if way is not Access.BY_COUNT and index is None:
        with opened(path, limits) as (fresh, fresh_stream):
            index = from_packets(path, fresh, fresh_stream)
    if index is not None:
        return way, index
    with opened(path, limits) as (fresh, fresh_stream):
        return Access.BY_COUNT, from_decoding(path, fresh, fresh_stream)


def _check_whole(path: str, container: InputContainer, stream: VideoStream) -> None:
    if is_remote(path):
        return
    missing = missing_bytes(Path(path), container.format.name)
    size = Path(path).stat().st_size
    late = sum(entry.pos + entry.size > size for entry in stream.index_entries) if stream.frames else 0
    if missing or late:
        raise UserError(
            f"{path}: the file is cut off ({_readable(container, stream)}); copy or download it again, "
            "or remux the readable part with ffmpeg -i FILE -c copy"
        )


def _readable(container: InputContainer, stream: VideoStream) -> str:
    """How much of a cut-off file there is: frames whose packets are whole, and their seconds."""
    times: list[int] = []
    with suppress(FFmpegError):  # the end of what is readable
        times.extend(
            packet.pts
            for packet in container.demux(stream)
            if packet.size and not packet.is_corrupt and packet.pts is not None
        )
    if not times or stream.time_base is None:
        return "no frame is readable"
    return f"about {len(times)} frames, {float((max(times) - min(times)) * stream.time_base):.2f} s, are readable"


def _first_frame(path: str, container: InputContainer, stream: VideoStream) -> VideoFrame:
    try:
        frame = next(container.decode(stream), None)
    except FFmpegError as error:
        raise UserError(f"{path}: its first frame cannot be decoded ({error.strerror}); the file is damaged") from error
    if frame is None:
        raise UserError(f"{path}: its video stream holds no frames that can be decoded")
    return frame

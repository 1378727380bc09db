"""From a request to frames, in this process. Imports neither torch nor anything that does: the isolated process runs
this."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longvid_train.errors import UserError
from longvid_train.video.container import opened
from longvid_train.video.decord_reader import DecordReader
from longvid_train.video.limits import DecodeLimits
from longvid_train.video.pyav_reader import PyavReader
from longvid_train.video.routing import Access, choose
from longvid_train.video.sampling import Sampling, select
from longvid_train.video.source import Reader, Source, open_source

_READERS: dict[str, type[Reader]] = {"pyav": PyavReader, "decord": DecordReader}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `read_clip` is asked for; see there."""

    path: str
    sampling: Sampling
    reader: str
    limits: DecodeLimits
    shortest_edge: int | None
    exact: bool
    workers: int | None = None

    def __post_init__(self) -> None:
        """Refuse edges below 1 pixel and fewer than 1 worker."""
        if self.workers is not None and self.workers < 1:
            raise UserError(f"workers is {self.workers}; it must be at least 1")
        if self.shortest_edge is not None and self.shortest_edge < 1:
            raise UserError(f"shortest_edge is {self.shortest_edge}; it must be at least 1 pixel")


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoded:
    """Frames ``(N, height, width, 3)`` uint8, their ``(N,)`` float64 times, and the file's length."""

    frames: NDArray[np.uint8]
    timestamps_s: NDArray[np.float64]
    duration_s: float
    reader: str


def decode(request: Request) -> Decoded:
    """Read the frames of ``request``.

    Raises:
        UserError: see `read_clip`.
    """
    source = open_source(request.path, request.limits, full_scan=request.reader == "decord")
    reader = choose(request.reader, source.info, source.index)
    indices = select_named(request.path, request.sampling, source)
    if not request.exact:
        indices = snapped(source, indices)
    size = source.size(request.shortest_edge)
    request.limits.check_output(request.path, len(indices), *size)
    distinct, places = np.unique(indices, return_inverse=True)
    frames = _READERS[reader](request.workers).read(source, distinct, size)
    return Decoded(
        frames=frames if np.array_equal(distinct, indices) else frames[places],
        timestamps_s=source.info.timestamps_s[indices],
        duration_s=source.info.duration_s,
        reader=reader,
    )


def select_named(path: str, sampling: Sampling, source: Source) -> NDArray[np.int64]:
    """`select`, with the file named in the error."""
    try:
        return select(sampling, source.info.timestamps_s, source.info.duration_s)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def snapped(source: Source, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """The keyframe at or before each frame; unchanged where the container cannot seek."""
    if source.access is not Access.SEEK:
        return indices
    keyframes = np.searchsorted(source.index.seek_pts, source.index.pts[indices], side="right") - 1
    times = _keyframe_times(source, np.maximum(keyframes, 0))
    return np.maximum(np.searchsorted(source.index.pts, times, side="right") - 1, 0).astype(np.int64)


def _keyframe_times(source: Source, keyframes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Presentation times of keyframes, read from their packets where the index only estimates them."""
    if not source.index.estimated:
        return source.index.seek_pts[keyframes]
    times: dict[int, int] = {}
    with opened(source.path, source.limits) as (container, stream):
        for keyframe in np.unique(keyframes).tolist():
            container.seek(int(source.index.seek_pts[keyframe]), stream=stream)
            packet = next(container.demux(stream))
            times[keyframe] = int(source.index.seek_pts[keyframe]) if packet.pts is None else packet.pts
    return np.array([times[keyframe] for keyframe in keyframes.tolist()], dtype=np.int64)

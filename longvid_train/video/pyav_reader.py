"""Exact frames with PyAV: the reader that is right for every container and codec.

Where the container can seek, the frames wanted are grouped by the keyframe they decode from, and the groups are
decoded side by side, one thread and one decoder each (PyAV releases the GIL). Within a group the decoder is fed up to
the last packet wanted and then drained; frames that nothing refers to and nobody wants are not decoded at all
(FFmpeg's ``skip_frame=nonref``), which changes no other frame. Only wanted frames are converted to RGB, at their
final size, straight into the result.
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from longvid_train.errors import UserError
from longvid_train.video.container import opened
from longvid_train.video.routing import Access
from longvid_train.video.source import Source

_SKIPS_NONREF = frozenset({"h264", "hevc", "mpeg4", "mpeg2video"})
"""Codecs whose decoder heeds ``skip_frame`` packet by packet (dav1d applies it to the wanted frames too)."""


@dataclass(frozen=True)
class Group:
    """Frames that decode from one keyframe.

    Attributes:
        keyframe: index into ``FrameIndex.seek_pts``.
        pts: presentation times wanted, increasing.
    """

    keyframe: int
    pts: tuple[int, ...]


class PyavReader:
    """Reads any file that `open_source` accepts."""

    name = "pyav"

    def __init__(self, workers: int | None = None) -> None:
        """Use up to ``workers`` threads; None takes the cores this process may run on."""
        self.workers = workers or usable_cores()

    def read(self, source: Source, indices: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.uint8]:
        """See `Reader.read`."""
        width, height = size
        output = np.empty((len(indices), height, width, 3), dtype=np.uint8)
        if source.access is Access.SEEK:
            self._read_groups(source, indices, output)
        else:
            _read_in_order(source, indices, output)
        return output

    def _read_groups(self, source: Source, indices: NDArray[np.int64], output: NDArray[np.uint8]) -> None:
        groups = group_by_keyframe(source, indices)
        slots = {int(pts): slot for slot, pts in enumerate(source.index.pts[indices])}
        queue = iter(groups)
        workers = min(self.workers, len(groups))
        threads = max(1, self.workers // workers)
        if workers == 1:
            _work(source, queue, slots, output, threads)
            return
        with ThreadPoolExecutor(workers) as pool:
            shares = [pool.submit(_work, source, _shared(queue), slots, output, threads) for _ in range(workers)]
            for share in shares:
                share.result()


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def group_by_keyframe(source: Source, indices: NDArray[np.int64]) -> list[Group]:
    """Group wanted frames by the last keyframe shown no later than them."""
    wanted = source.index.pts[indices]
    keyframes = np.maximum(np.searchsorted(source.index.seek_pts, wanted, side="right") - 1, 0)
    return [
        Group(int(keyframe), tuple(wanted[keyframes == keyframe].tolist()))
        for keyframe in np.unique(keyframes).tolist()
    ]


def _shared(queue: Iterator[Group]) -> Iterator[Group]:
    """Items of an iterator that other threads also take from (``next`` of a list iterator is atomic)."""
    while (group := next(queue, None)) is not None:
        yield group


def _work(
    source: Source, queue: Iterable[Group], slots: dict[int, int], output: NDArray[np.uint8], threads: int
) -> None:
    with opened(source.path, source.limits) as (container, stream):
        stream.codec_context.thread_count = threads
        stream.thread_type = "AUTO" if threads > 1 else "SLICE"
        canvas = Canvas(source, output)
        for group in queue:
            _read_group(source, container, stream, group, slots, canvas)


def _read_group(
    source: Source,
    container: InputContainer,
    stream: VideoStream,
    group: Group,
    slots: dict[int, int],
    canvas: "Canvas",
) -> None:
    """Decode a group; where a frame does not come out, start from ever earlier keyframes, in the end from the first."""
    missing = set(group.pts)
    back = 1
    keyframe = group.keyframe
    while True:
        for frame in _decode_from(source, container, stream, keyframe, missing):
            pts = frame.pts
            assert pts is not None
            canvas.put(slots[pts], frame)
            missing.discard(pts)
        if not missing:
            return
        if keyframe == 0:
            raise _undecodable(source, missing)
        keyframe, back = max(0, keyframe - back), back * 2


def _decode_from(
    source: Source, container: InputContainer, stream: VideoStream, keyframe: int, wanted: set[int]
) -> Iterator[VideoFrame]:
    """Yield frames of ``wanted`` that decode from a keyframe; none if the seek lands after the first of them."""
    unseen, wanted = set(wanted), set(wanted)
    first = min(wanted)
    context = stream.codec_context
    skips = source.info.codec in _SKIPS_NONREF
    try:
        container.seek(int(source.index.seek_pts[keyframe]), stream=stream)
        landed = False
        for packet in container.demux(stream):
            if packet.size == 0:
                break
            if not landed and packet.is_keyframe and packet.pts is not None:
                if packet.pts > first:
                    return
                landed = True
            unseen.discard(packet.pts)
            context.skip_frame = "NONREF" if skips and packet.pts not in wanted else "DEFAULT"
            yield from (frame for frame in packet.decode() if frame.pts in wanted)
            if not unseen:
                break
        yield from (frame for frame in stream.decode(None) if frame.pts in wanted)
    except FFmpegError as error:
        raise _damaged(source, error) from error


def _read_in_order(source: Source, indices: NDArray[np.int64], output: NDArray[np.uint8]) -> None:
    by_count = source.access is Access.BY_COUNT
    names = indices if by_count else source.index.pts[indices]
    slots = {int(name): slot for slot, name in enumerate(names)}
    canvas = Canvas(source, output)
    with opened(source.path, source.limits) as (container, stream):
        stream.thread_type = "AUTO"
        try:
            for count, frame in enumerate(container.decode(stream)):
                name = count if by_count else frame.pts
                slot = slots.pop(name, None) if name is not None else None
                if slot is not None:
                    canvas.put(slot, frame)
                if not slots:
                    return
        except FFmpegError as error:
            raise _damaged(source, error) from error
    raise _undecodable(source, set(slots))


class Canvas:
    """Writes decoded pictures, scaled and upright, into their place of the result. One per thread: the scaler is
    kept."""

    def __init__(self, source: Source, output: NDArray[np.uint8]) -> None:
        """Fill ``output`` ``(N, height, width, 3)`` uint8."""
        self.output = output
        self.turns = source.info.rotation_deg // 90
        height, width = output.shape[1:3]
        self.size = (width, height) if self.turns % 2 == 0 else (height, width)
        self.reformatter = VideoReformatter()

    def put(self, slot: int, frame: VideoFrame) -> None:
        """Convert ``frame`` and store it at ``slot``."""
        width, height = self.size
        picture = self.reformatter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation=Interpolation.BICUBIC, threads=1
        )
        self.output[slot] = np.rot90(picture.to_ndarray(), self.turns)


def _damaged(source: Source, error: FFmpegError) -> UserError:
    return UserError(f"{source.path}: the file is damaged: {error.strerror} while decoding; copy or download it again")


def _undecodable(source: Source, missing: set[int]) -> UserError:
    return UserError(
        f"{source.path}: {len(missing)} of the frames asked for cannot be decoded; the file is damaged, "
        "copy or download it again"
    )

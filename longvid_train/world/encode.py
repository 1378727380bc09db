"""Writing H.264 mp4 and srt files, frame by frame, so that an hour takes no more memory than a second."""

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from longvid_train.files import atomic_path, write_text
from longvid_train.types import Subtitle


def write_mp4(path: Path, frames: Iterable[NDArray[np.uint8]], *, fps: Fraction, gop: int = 16, crf: int = 18) -> int:
    """Encode frames with libx264 (yuv420p, one thread, no dates), atomically; return how many there were.

    The same frames give the same bytes with the same libx264.

    Args:
        path: the file to write.
        frames: ``(height, width, 3)`` uint8 RGB, all of one even size; consumed one at a time.
        fps: frames a second, exact.
        gop: a keyframe at least every this many frames.
        crf: constant rate factor.

    Raises:
        ValueError: there are no frames, or one differs in size from the first.
    """
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        return _encode(container, frames, fps, gop, crf)


def _encode(
    container: av.container.OutputContainer, frames: Iterable[NDArray[np.uint8]], fps: Fraction, gop: int, crf: int
) -> int:
    stream: av.VideoStream | None = None
    count = 0
    for picture in frames:
        if stream is None:
            stream = _add_stream(container, picture.shape, fps, gop, crf)
        if picture.shape != (stream.height, stream.width, 3):
            raise ValueError(f"frame {count} has shape {picture.shape}, not {(stream.height, stream.width, 3)}")
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts = count
        frame.time_base = 1 / fps
        container.mux(stream.encode(frame))
        count += 1
    if stream is None:
        raise ValueError("no frames to encode")
    container.mux(stream.encode(None))
    return count


def _add_stream(
    container: av.container.OutputContainer, shape: tuple[int, ...], fps: Fraction, gop: int, crf: int
) -> av.VideoStream:
    # With macroblock trees libx264's assembly gives, for one file in ten, bytes that depend on what lies in memory.
    options = {"crf": str(crf), "preset": "veryfast", "threads": "1", "g": str(gop), "mbtree": "0"}
    stream = container.add_stream("libx264", rate=fps, options=options)
    stream.height, stream.width = shape[0], shape[1]
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = 1 / fps
    return stream


def write_srt(path: Path, lines: Sequence[Subtitle]) -> None:
    """Write subtitle lines as SubRip (UTF-8, times to the millisecond), atomically."""
    write_text(path, srt_text(lines))


def srt_text(lines: Sequence[Subtitle]) -> str:
    """The SubRip text of subtitle lines, numbered from 1."""
    blocks = [
        f"{number}\n{_clock(line.start_s)} --> {_clock(line.end_s)}\n{line.text}\n"
        for number, line in enumerate(lines, start=1)
    ]
    return "\n".join(blocks)


def _clock(time_s: float) -> str:
    total_ms = round(time_s * 1000)
    hours, rest_ms = divmod(total_ms, 3_600_000)
    minutes, rest_ms = divmod(rest_ms, 60_000)
    seconds, milliseconds = divmod(rest_ms, 1000)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d},{milliseconds:03d}"

"""Media of a conversation: known by their container first, decoded and encoded once when the first question needs them.

``N`` frames of one medium.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from longvid_train.data.conversation import MediumLayout
from longvid_train.data.manifest import MediaType
from longvid_train.data.subtitles import lines_after_frames, lines_in_window
from longvid_train.errors import UserError
from longvid_train.generate.engine import Engine
from longvid_train.video import (
    AtTimes,
    DecodeLimits,
    Sampling,
    VideoInfo,
    probe,
    read_clip,
    read_image,
    read_subtitles,
    select,
)
from longvid_train.video.image import FORMATS

PIECE_BYTES = 512 << 20
"""Decoded RGB bytes that exist at once, so that an hour of full-size frames never does."""

IMAGE_READER = "pillow"
MEMORY_READER = "memory"

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done, how many frames are done, and how many there are."""


def no_progress(what: str, done: int, total: int) -> None:
    """Report nothing."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How files are read.

    Attributes:
        reader: ``"auto"``, ``"pyav"`` or ``"decord"``.
        isolated: probe and decode in a killable process; files may come from strangers.
        limits: what a file may cost.
    """

    reader: str = "auto"
    isolated: bool = True
    limits: DecodeLimits = field(default_factory=DecodeLimits)


@dataclass(frozen=True, eq=False)
class Medium:
    """One medium before its pixels.

    Attributes:
        path: the file.
        type: ``"image"`` or ``"video"``.
        timestamps_s: time of each frame to show, in seconds from the video's first frame; ``(0.0,)`` for an image.
        duration_s: length of the whole video; 0 for an image.
        layout: frames and the subtitle lines behind them.
        reader: which reader will decode it: ``ReadOptions.reader``, or ``"pillow"`` for an image.
        frame_bytes: RGB bytes of one decoded frame; 0 for an image.
        sampling: which frames of the video; None for an image and for frames in memory.
        frames: ``(N, height, width, 3)`` uint8 RGB where they are in memory already.
    """

    path: str
    type: MediaType
    timestamps_s: tuple[float, ...]
    duration_s: float
    layout: MediumLayout
    reader: str
    frame_bytes: int = 0
    sampling: Sampling | None = None
    frames: NDArray[np.uint8] | None = None


@dataclass(frozen=True, eq=False)
class EncodedMedia:
    """All media of a conversation, encoded.

    Attributes:
        kept: of each medium, what the engine keeps of its frames.
        readers: which reader decoded each medium.
        decode_s: seconds spent reading and preprocessing.
        encode_s: seconds spent in the tower.
    """

    kept: tuple[Any, ...]
    readers: tuple[str, ...]
    decode_s: float
    encode_s: float


def media_type(path: str | Path) -> MediaType:
    """Whether a file is a still image or (probably) a video, by its content. A GIF of several pictures is a video.

    What is not a regular file is left to `probe_video` to refuse: opening a pipe would wait for ever.
    """
    if not Path(path).is_file():
        return "video"
    try:
        with Image.open(path, formats=FORMATS) as image:
            moving = image.format == "GIF" and getattr(image, "n_frames", 1) > 1
            return "video" if moving else "image"
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "video"


def open_image(path: str | Path) -> Medium:
    """An image to show."""
    return Medium(
        path=str(path),
        type="image",
        timestamps_s=(0.0,),
        duration_s=0.0,
        layout=MediumLayout.without_subtitles("image", 1),
        reader=IMAGE_READER,
    )


def open_frames(
    frames: NDArray[np.uint8],
    *,
    timestamps_s: Sequence[float] | None = None,
    subtitles: str | Path | None = None,
    name: str = "frames",
) -> Medium:
    """Frames of a video that are in memory already.

    Args:
        frames: ``(N, height, width, 3)`` uint8 RGB in time order.
        timestamps_s: time of each, not falling; default: 0, 1, 2, ...
        subtitles: an ``.srt`` file; its lines from the first frame's time on stand behind their frames.
        name: what answers call the video.

    Raises:
        UserError: an array of another shape or type, or other than one time a frame.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise UserError(
            f"{name} are {frames.dtype} of shape {frames.shape}; they must be uint8 of shape (N, height, width, 3)"
        )
    times_s = tuple(map(float, range(len(frames)) if timestamps_s is None else timestamps_s))
    if len(times_s) != len(frames) or any(later < earlier for earlier, later in pairwise(times_s)):
        raise UserError(f"{name}: {len(times_s)} timestamps for {len(frames)} frames; give one a frame, in time order")
    lines = [] if subtitles is None else lines_in_window(read_subtitles(subtitles), times_s[0], None)
    return Medium(
        path=name,
        type="video",
        timestamps_s=times_s,
        duration_s=times_s[-1] - times_s[0],
        layout=MediumLayout("video", lines_after_frames(lines, times_s)),
        reader=MEMORY_READER,
        frames=frames,
    )


def probe_video(path: str | Path, options: ReadOptions) -> VideoInfo:
    """What a video's container says.

    Raises:
        UserError: the file cannot be read or breaks a limit.
    """
    return probe(path, isolated=options.isolated, limits=options.limits)


def open_video(
    info: VideoInfo, sampling: Sampling, *, subtitles: str | Path | None = None, reader: str = "auto"
) -> Medium:
    """A probed video to show; nothing is decoded.

    Args:
        info: what `probe_video` found.
        sampling: which frames.
        subtitles: an ``.srt`` file; its lines in the sampling's window stand behind their frames.
        reader: see `ReadOptions`.

    Raises:
        UserError: the video does not hold the frames asked for, or the subtitles are broken (``file:line``).
    """
    try:
        indices = select(sampling, info.timestamps_s, info.duration_s)
    except UserError as error:
        raise UserError(f"{info.path}: {error}") from error
    timestamps_s = tuple(info.timestamps_s[indices].tolist())
    lines = [] if subtitles is None else lines_in_window(read_subtitles(subtitles), sampling.start_s, sampling.end_s)
    return Medium(
        path=info.path,
        type="video",
        timestamps_s=timestamps_s,
        duration_s=info.duration_s,
        layout=MediumLayout("video", lines_after_frames(lines, timestamps_s)),
        reader=reader,
        frame_bytes=info.width * info.height * 3,
        sampling=sampling,
    )


def check_frame_counts(media: Sequence[Medium], options: ReadOptions) -> None:
    """Refuse a video with more frames to show than the ceiling: it is decoded in pieces that may each be below it.

    Raises:
        UserError: naming the file.
    """
    for medium in media:
        options.limits.check_frame_count(medium.path, medium.layout.frame_count)


def encode_media(
    media: Sequence[Medium],
    engine: Engine,
    options: ReadOptions,
    *,
    on_progress: OnProgress = no_progress,
) -> EncodedMedia:
    """Decode, preprocess and encode all frames, a chunk at a time; neither frames nor pixels exist all at once.

    Args:
        media: at least what the first question shows; may be empty.
        engine: preprocesses frames, encodes them and keeps what questions need.
        options: how files are read.
        on_progress: told after each piece read and each chunk encoded.

    Raises:
        UserError: a file cannot be decoded.
    """
    total = sum(medium.layout.frame_count for medium in media)
    kept: list[Any] = []
    readers: list[str] = []
    done = 0
    timer = _Timer(engine.device)

    def chunks(medium: Medium) -> Iterator[Any]:
        nonlocal done
        for frames, reader in _decoded_pieces(medium, options):
            used.append(reader)
            for chunk in np.split(frames, range(engine.frame_chunk, len(frames), engine.frame_chunk)):
                prepared = engine.prepare(chunk)
                timer.charge("decode")
                yield prepared
                done += len(chunk)
                timer.charge("encode")
                on_progress("encoding frames", done, total)

    for medium in media:
        on_progress(f"reading {medium.path}", done, total)
        used: list[str] = []
        kept.append(engine.keep(chunks(medium), medium.layout))
        timer.charge("encode")
        readers.append(used[0])
    assert done == total, f"{done} frames decoded where the containers promised {total}"
    return EncodedMedia(tuple(kept), tuple(readers), timer.seconds["decode"], timer.seconds["encode"])


class _Timer:
    """Charges the time since the last charge to a name, after the device has finished its work."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._clock = time.perf_counter()
        self.seconds = {"decode": 0.0, "encode": 0.0}

    def charge(self, name: str) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.seconds[name] += now - self._clock
        self._clock = now


def _decoded_pieces(medium: Medium, options: ReadOptions) -> Iterator[tuple[NDArray[np.uint8], str]]:
    """Yield ``(n, height, width, 3)`` uint8 frames in order, at most `PIECE_BYTES` at once, and their reader."""
    if medium.frames is not None:
        yield medium.frames, MEMORY_READER
        return
    if medium.sampling is None:
        yield read_image(medium.path, limits=options.limits)[None], IMAGE_READER
        return
    size = max(1, PIECE_BYTES // medium.frame_bytes)
    for start in range(0, len(medium.timestamps_s), size):
        times_s = medium.timestamps_s[start : start + size]
        sampling = medium.sampling if len(times_s) == len(medium.timestamps_s) else AtTimes(times_s=times_s)
        clip = read_clip(medium.path, sampling, reader=options.reader, isolated=options.isolated, limits=options.limits)
        yield clip.frames, clip.reader

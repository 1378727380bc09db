"""Which frames to take: pure index maths, no decoding.

``n`` frames of the file in presentation order stand at ``timestamps_s`` ``(n,)`` float64, increasing, 0 for the first.
A frame is on screen from its timestamp until the next frame's. A window ``[start_s, end_s)`` holds the frames on screen
during it.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longvid_train.errors import UserError
from longvid_train.video.info import VideoInfo

TOLERANCE_S = 1e-3
"""Containers round timestamps (Matroska to 1 ms): a frame up to this much after the time counts as on screen."""

MAX_TIMES = 1 << 24
"""Most times one selection may list: a rate of a billion frames a second must not fill the memory with indices."""


@dataclass(frozen=True, kw_only=True)
class _Window:
    start_s: float = 0.0
    end_s: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start_s) and self.start_s >= 0):
            raise UserError(f"start_s is {self.start_s}; it must be a number of seconds >= 0")
        if self.end_s is not None and not (math.isfinite(self.end_s) and self.end_s > self.start_s):
            raise UserError(f"end_s is {self.end_s}; it must be a number of seconds after start_s = {self.start_s}")


@dataclass(frozen=True, kw_only=True)
class UniformFrames(_Window):
    """``count`` frames, evenly spaced from the first to the last frame of the window.

    The LLaVA convention: indices are ``linspace(first, last, count)``, here rounded to the nearest frame.

    Attributes:
        count: frames to take, at least 1.
        at_most: take every frame when the window holds fewer than ``count``, instead of raising `UserError`.
    """

    count: int
    at_most: bool = False

    def __post_init__(self) -> None:
        """Refuse counts below 1."""
        super().__post_init__()
        if self.count < 1:
            raise UserError(f"count is {self.count}; at least 1 frame must be asked for")


@dataclass(frozen=True, kw_only=True)
class FramesPerSecond(_Window):
    """The frames on screen at ``start_s + k / fps``, before the end of the window.

    Attributes:
        fps: frames per second of video, greater than 0.
        max_frames: where more would be taken, take `UniformFrames` of this count over the window instead.
    """

    fps: float
    max_frames: int | None = None

    def __post_init__(self) -> None:
        """Refuse rates that are not positive and caps below 1."""
        super().__post_init__()
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise UserError(f"fps is {self.fps}; it must be greater than 0")
        if self.max_frames is not None and self.max_frames < 1:
            raise UserError(f"max_frames is {self.max_frames}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class AtTimes(_Window):
    """The frames on screen at the given times, in the order given.

    Attributes:
        times_s: seconds from the first frame, each inside the window.
    """

    times_s: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse an empty list and times that are not numbers of seconds >= 0."""
        super().__post_init__()
        object.__setattr__(self, "times_s", tuple(float(time_s) for time_s in self.times_s))
        if not self.times_s:
            raise UserError("times_s is empty; give at least one time in seconds")
        for time_s in self.times_s:
            if not (math.isfinite(time_s) and time_s >= 0):
                raise UserError(f"times_s holds {time_s}; each must be a number of seconds >= 0")


Sampling = UniformFrames | FramesPerSecond | AtTimes


def select(sampling: Sampling, timestamps_s: NDArray[np.float64], duration_s: float) -> NDArray[np.int64]:
    """Indices of the frames to take, in the order to return them.

    Args:
        sampling: what to take.
        timestamps_s: ``(n,)`` float64 seconds, increasing, the first is 0.
        duration_s: end of the last frame.

    Returns:
        ``(N,)`` int64 indices into ``timestamps_s``; an index may repeat when times are denser than frames.

    Raises:
        UserError: a time or the window lies outside the video, or there are fewer frames than asked for.
    """
    end_s = _check_window(sampling, duration_s)
    if isinstance(sampling, AtTimes):
        return _on_screen(timestamps_s, _checked_times(sampling, end_s))
    if isinstance(sampling, FramesPerSecond):
        times = _regular_count(sampling, end_s)
        if sampling.max_frames is None or times <= sampling.max_frames:
            if times > MAX_TIMES:
                raise UserError(f"fps is {sampling.fps:g}, which asks for more than {MAX_TIMES} frames; lower it")
            return _on_screen(timestamps_s, sampling.start_s + np.arange(times) / sampling.fps)
        return _uniform(timestamps_s, sampling.start_s, end_s, sampling.max_frames, at_most=True)
    return _uniform(timestamps_s, sampling.start_s, end_s, sampling.count, at_most=sampling.at_most)


def frame_count(sampling: Sampling, info: VideoInfo) -> int:
    """Number of frames ``read_clip`` will return for ``sampling``, exactly, from a probe and without decoding.

    Raises:
        UserError: as `select`.
    """
    return len(select(sampling, info.timestamps_s, info.duration_s))


def _check_window(sampling: Sampling, duration_s: float) -> float:
    if sampling.start_s >= duration_s:
        raise UserError(f"start_s = {sampling.start_s:g} is outside the video, which lasts {duration_s:.3f} s")
    if sampling.end_s is None:
        return duration_s
    if sampling.end_s > duration_s + TOLERANCE_S:
        raise UserError(f"end_s = {sampling.end_s:g} is outside the video, which lasts {duration_s:.3f} s")
    return sampling.end_s


def _checked_times(sampling: AtTimes, end_s: float) -> NDArray[np.float64]:
    for time_s in sampling.times_s:
        if not sampling.start_s <= time_s <= end_s + TOLERANCE_S:
            raise UserError(
                f"time {time_s:g} s is outside the video or window, which is {sampling.start_s:g} to {end_s:.3f} s"
            )
    return np.asarray(sampling.times_s, dtype=np.float64)


def _regular_count(sampling: FramesPerSecond, end_s: float) -> int:
    """Number of times, exact up to `MAX_TIMES` and above it only known to be above."""
    times = min((end_s - sampling.start_s) * sampling.fps, float(2 * MAX_TIMES))
    return max(1, math.ceil(times - TOLERANCE_S))


def _on_screen(timestamps_s: NDArray[np.float64], times_s: NDArray[np.float64]) -> NDArray[np.int64]:
    after = np.searchsorted(timestamps_s, times_s + TOLERANCE_S, side="right")
    return np.maximum(after - 1, 0).astype(np.int64)


def _uniform(
    timestamps_s: NDArray[np.float64], start_s: float, end_s: float, count: int, *, at_most: bool
) -> NDArray[np.int64]:
    first = int(_on_screen(timestamps_s, np.array([start_s]))[0])
    last = max(first, int(np.searchsorted(timestamps_s, end_s - TOLERANCE_S, side="left")) - 1)
    available = last - first + 1
    if count > available and not at_most:
        raise UserError(
            f"{count} frames asked for, but the video or window ({start_s:g} to {end_s:.3f} s) has {available}; "
            f"ask for at most {available}, or set at_most in a config to take what there is"
        )
    return np.rint(np.linspace(first, last, min(count, available))).astype(np.int64)

"""Index maths of the samplings, against definitions written another way."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from longvid_train.errors import UserError
from longvid_train.video import AtTimes, FramesPerSecond, UniformFrames, VideoInfo, frame_count, select


def constant(frames: int, fps: float) -> tuple[NDArray[np.float64], float]:
    return np.arange(frames) / fps, frames / fps


@st.composite
def timelines(draw: st.DrawFn) -> tuple[NDArray[np.float64], float]:
    gaps = draw(st.lists(st.integers(10, 2000), min_size=1, max_size=60))
    ends = np.cumsum(gaps) / 1000
    return np.concatenate([[0.0], ends[:-1]]), float(ends[-1])


def on_screen(times: NDArray[np.float64], t: float) -> int:
    """The frame on screen at ``t``, by walking the timeline."""
    shown = 0
    for index, time in enumerate(times):
        if time <= t + 1e-3:
            shown = index
    return shown


def test_uniform_takes_first_last_and_the_rounded_points_between() -> None:
    times, duration = constant(100, 25)
    assert select(UniformFrames(count=5), times, duration).tolist() == [0, 25, 50, 74, 99]
    assert select(UniformFrames(count=1), times, duration).tolist() == [0]
    assert select(UniformFrames(count=100), times, duration).tolist() == list(range(100))


def test_uniform_in_a_window_excludes_the_frame_at_its_end() -> None:
    times, duration = constant(100, 10)
    assert select(UniformFrames(count=3, start_s=2.0, end_s=4.0), times, duration).tolist() == [20, 30, 39]


def test_a_window_between_two_frames_holds_the_frame_on_screen() -> None:
    times, duration = constant(3, 0.2)
    assert select(UniformFrames(count=1, start_s=6.0, end_s=9.0), times, duration).tolist() == [1]


def test_more_frames_than_there_are_is_refused_unless_at_most() -> None:
    times, duration = constant(4, 10)
    with pytest.raises(UserError, match=r"5 frames asked for.* has 4"):
        select(UniformFrames(count=5), times, duration)
    assert select(UniformFrames(count=5, at_most=True), times, duration).tolist() == [0, 1, 2, 3]


@given(timelines(), st.integers(1, 80))
def test_uniform_is_ordered_distinct_and_even(timeline: tuple[NDArray[np.float64], float], count: int) -> None:
    times, duration = timeline
    indices = select(UniformFrames(count=count, at_most=True), times, duration)
    taken = min(count, len(times))
    assert len(indices) == taken
    assert indices[0] == 0
    assert (np.diff(indices) >= 1).all()
    if taken > 1:
        assert indices[-1] == len(times) - 1
        ideal = [k * (len(times) - 1) / (taken - 1) for k in range(taken)]
        assert np.abs(indices - ideal).max() <= 0.5


@given(timelines(), st.floats(0.05, 50), st.floats(0, 0.9))
def test_fps_takes_the_frame_on_screen_at_each_tick(
    timeline: tuple[NDArray[np.float64], float], fps: float, start_share: float
) -> None:
    times, duration = timeline
    start = start_share * duration
    indices = select(FramesPerSecond(fps=fps, start_s=start), times, duration)
    assert indices.tolist() == [on_screen(times, start + k / fps) for k in range(len(indices))]
    assert start + (len(indices) - 1) / fps < duration
    assert start + len(indices) / fps >= duration - 2e-3 / fps


def test_fps_equal_to_the_rate_takes_every_frame_of_a_millisecond_timeline() -> None:
    times = np.round(np.arange(300) / 29.97, 3)
    assert select(FramesPerSecond(fps=29.97), times, 300 / 29.97).tolist() == list(range(300))


def test_fps_beyond_its_cap_becomes_uniform_over_the_window() -> None:
    times, duration = constant(100, 10)
    capped = FramesPerSecond(fps=5, max_frames=4, start_s=1.0, end_s=9.0)
    expected = select(UniformFrames(count=4, start_s=1.0, end_s=9.0), times, duration)
    assert select(capped, times, duration).tolist() == expected.tolist() == [10, 36, 63, 89]
    assert len(select(FramesPerSecond(fps=5, max_frames=50), times, duration)) == 50


def test_times_keep_their_order_and_may_repeat() -> None:
    times, duration = constant(10, 10)
    assert select(AtTimes(times_s=(0.95, 0.0, 0.35, 0.31, 1.0)), times, duration).tolist() == [9, 0, 3, 3, 9]


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (AtTimes(times_s=(0.5, 1.2)), "1.2 s is outside"),
        (AtTimes(times_s=(0.1,), start_s=0.5), "0.1 s is outside"),
        (UniformFrames(count=1, start_s=1.0), "start_s = 1 is outside"),
        (FramesPerSecond(fps=1, end_s=1.5), "end_s = 1.5 is outside"),
    ],
)
def test_times_outside_the_video_are_refused(sampling: AtTimes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        select(sampling, *constant(10, 10))


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (UniformFrames, {"count": 0}, "count is 0"),
        (UniformFrames, {"count": 1, "start_s": -1.0}, "start_s is -1"),
        (UniformFrames, {"count": 1, "start_s": 2.0, "end_s": 2.0}, "end_s is 2"),
        (FramesPerSecond, {"fps": 0.0}, "fps is 0"),
        (FramesPerSecond, {"fps": float("nan")}, "fps is nan"),
        (FramesPerSecond, {"fps": 1.0, "max_frames": 0}, "max_frames is 0"),
        (AtTimes, {"times_s": ()}, "times_s is empty"),
        (AtTimes, {"times_s": (float("inf"),)}, "times_s holds inf"),
    ],
)
def test_impossible_settings_are_refused(kind: type[AtTimes], arguments: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        kind(**arguments)


@given(timelines(), st.floats(0.1, 20), st.integers(1, 40))
def test_frame_count_is_the_number_of_frames_selected(
    timeline: tuple[NDArray[np.float64], float], fps: float, cap: int
) -> None:
    times, duration = timeline
    info = VideoInfo(
        path="a.mp4",
        container="mov",
        codec="h264",
        width=2,
        height=2,
        rotation_deg=0,
        timestamps_s=times,
        duration_s=duration,
    )
    sampling = FramesPerSecond(fps=fps, max_frames=cap)
    assert frame_count(sampling, info) == len(select(sampling, times, duration)) <= max(cap, 1)


@pytest.mark.parametrize("fps", [1e9, 1e308])
def test_an_absurd_rate_is_refused_before_its_indices_fill_the_memory(fps: float) -> None:
    times, duration = constant(20, 4.0)
    with pytest.raises(UserError, match="asks for more than 16777216 frames; lower it"):
        select(FramesPerSecond(fps=fps), times, duration)
    assert select(FramesPerSecond(fps=fps, max_frames=2), times, duration).tolist() == [0, 19]

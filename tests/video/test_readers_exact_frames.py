"""Every reader returns the frame whose number is painted in, in every container and codec that routing gives it."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from longvid_train.errors import UserError
from longvid_train.video import AtTimes, DecodeLimits, FramesPerSecond, UniformFrames, frame_count, probe, read_clip
from longvid_train.video.pyav_reader import PyavReader
from longvid_train.video.routing import Access, decord_is_right
from longvid_train.video.source import open_source

Videos = Callable[[str], Path]
Barcode = Callable[[NDArray[np.uint8]], int]
READS = 8


def draws(frames: int) -> list[list[int]]:
    """Random sets of frames: alone, in twos and threes, and everything."""
    generator = random.Random(frames)
    sets = [sorted(generator.sample(range(frames), min(frames, 1 + k % 3))) for k in range(READS)]
    return [*sets, [frames - 1], list(range(frames))]


def numbers(frames: NDArray[np.uint8], rotation: int, barcode_of: Barcode) -> list[int]:
    return [barcode_of(np.rot90(frame, -rotation // 90)) for frame in frames]


def test_pyav_frames_and_times_are_right(recipe_name: str, videos: Videos, recipes: Any, barcode_of: Barcode) -> None:
    recipe, path = recipes[recipe_name], str(videos(recipe_name))
    source = open_source(path, DecodeLimits())
    ticks = np.array(recipe.pts()) if recipe.gaps else 4 * np.arange(recipe.frames)
    np.testing.assert_allclose(source.info.timestamps_s, ticks / (4 * recipe.rate), atol=1.1e-3)
    assert source.info.duration_s >= source.info.timestamps_s[-1] + 0.5 / recipe.rate
    turned = recipe.rotation % 180 == 90
    size = (recipe.height, recipe.width) if turned else (recipe.width, recipe.height)
    assert (source.info.width, source.info.height, source.info.rotation_deg) == (*size, recipe.rotation)
    for wanted in draws(recipe.frames):
        frames = PyavReader(workers=2).read(source, np.array(wanted), size)
        assert numbers(frames, recipe.rotation, barcode_of) == wanted


def test_decord_frames_are_right_wherever_routing_allows_it(
    recipe_name: str, videos: Videos, recipes: Any, barcode_of: Barcode
) -> None:
    pytest.importorskip("decord")
    recipe, path = recipes[recipe_name], str(videos(recipe_name))
    source = open_source(path, DecodeLimits(), full_scan=True)
    if not decord_is_right(source.info, source.index):
        with pytest.raises(UserError, match=r"decord is only right.*use reader 'pyav'"):
            read_clip(path, UniformFrames(count=1), reader="decord")
        return
    for wanted in draws(recipe.frames):
        clip = read_clip(path, AtTimes(times_s=tuple(source.info.timestamps_s[wanted])), reader="decord")
        assert clip.reader == "decord"
        assert numbers(clip.frames, recipe.rotation, barcode_of) == wanted


def test_routing_gives_decord_something_and_keeps_it_from_the_rest(videos: Videos) -> None:
    def right(name: str) -> bool:
        source = open_source(str(videos(name)), DecodeLimits(), full_scan=True)
        return decord_is_right(source.info, source.index)

    assert [right(name) for name in ("h264_closed", "h264_mkv", "vp9", "h264_vfr")] == [True] * 4
    refused = ("h264_open", "h264_open_mkv", "h264_avi", "h264_ts", "hevc", "mpeg4", "av1", "gif", "rotated_90")
    assert [right(name) for name in refused] == [False] * len(refused)


@pytest.mark.parametrize("name", ["h264_closed", "h264_open", "hevc", "mpeg4", "h264_vfr"])
def test_skipping_unreferenced_frames_changes_no_pixel(name: str, videos: Videos) -> None:
    with av.open(str(videos(name))) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    source = open_source(str(videos(name)), DecodeLimits())
    wanted = np.arange(5, len(expected), 11)
    frames = PyavReader(workers=2).read(source, wanted, (64, 48))
    assert np.abs(frames.astype(int) - np.stack([expected[k] for k in wanted]).astype(int)).max() <= 2


def test_upright_pixels_of_a_turned_video(videos: Videos) -> None:
    plain = read_clip(videos("h264_closed"), UniformFrames(count=2)).frames
    quarter = read_clip(videos("rotated_90"), UniformFrames(count=2)).frames
    assert quarter.shape == (2, 64, 48, 3)
    corners = [quarter[1][4, 4].mean() > 125, quarter[1][-4, 4].mean() > 125, quarter[1][4, -4].mean() > 125]
    turned = np.rot90(plain[1], 1)
    assert corners == [turned[4, 4].mean() > 125, turned[-4, 4].mean() > 125, turned[4, -4].mean() > 125]


def test_the_sample_table_is_used_only_where_it_is_certain(videos: Videos) -> None:
    def estimated(name: str) -> bool:
        return open_source(str(videos(name)), DecodeLimits()).index.estimated

    assert estimated("h264_closed") and estimated("h264_open") and estimated("hevc")
    assert not (estimated("h264_vfr") or estimated("h264_fragmented") or estimated("h264_mkv"))


def test_table_and_packets_give_the_same_index(videos: Videos) -> None:
    for name in ("h264_closed", "h264_open", "h264_one_gop", "hevc", "mpeg4", "vp9_mp4", "av1"):
        fast = open_source(str(videos(name)), DecodeLimits()).index
        slow = open_source(str(videos(name)), DecodeLimits(), full_scan=True).index
        assert fast.pts.tolist() == slow.pts.tolist(), name
        assert fast.end_pts == slow.end_pts, name


def test_containers_that_cannot_seek_are_read_in_order(videos: Videos) -> None:
    ways = {
        name: open_source(str(videos(name)), DecodeLimits()).access for name in ("h264_avi", "h264_ts", "gif", "vp9")
    }
    assert ways == {
        "h264_avi": Access.BY_COUNT,
        "h264_ts": Access.IN_ORDER,
        "gif": Access.IN_ORDER,
        "vp9": Access.SEEK,
    }


def test_frames_hidden_by_an_edit_list_are_not_counted(
    tmp_path: Path, videos: Videos, barcode_of: Barcode, make_edited: Callable[[Path, Path, int, int], None]
) -> None:
    path = tmp_path / "edited.mp4"
    make_edited(path, videos("h264_closed"), 17, 512)
    with av.open(str(path)) as container:
        expected = [barcode_of(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert expected == list(range(17, 60))
    clip = read_clip(path, UniformFrames(count=5))
    assert [barcode_of(frame) for frame in clip.frames] == [17, 27, 38, 49, 59]
    np.testing.assert_allclose(clip.timestamps_s, (np.array([17, 27, 38, 49, 59]) - 17) / 25)
    assert clip.duration_s == pytest.approx(43 / 25)


def test_keyframe_snapping_is_said_in_the_timestamps(videos: Videos, barcode_of: Barcode) -> None:
    for name in ("h264_closed", "h264_mkv", "h264_fragmented"):
        clip = read_clip(videos(name), AtTimes(times_s=(0.0, 0.5, 1.0, 2.0)), exact=False)
        assert [barcode_of(frame) for frame in clip.frames] == [0, 12, 24, 48], name
        np.testing.assert_allclose(clip.timestamps_s, np.array([0, 12, 24, 48]) / 25)


@pytest.mark.parametrize("name", ["h264_open", "hevc", "h264_open_mkv"])
def test_keyframe_snapping_returns_keyframes_of_open_gops(name: str, videos: Videos, barcode_of: Barcode) -> None:
    path = videos(name)
    with av.open(str(path)) as container:
        keys = sorted(p.pts * p.time_base for p in container.demux(video=0) if p.size and p.is_keyframe)
    clip = read_clip(path, FramesPerSecond(fps=7), exact=False)
    key_numbers = {round((key - keys[0]) * 25) for key in keys}
    shown = [barcode_of(frame) for frame in clip.frames]
    assert set(shown) <= key_numbers
    assert len(set(shown)) > 3
    np.testing.assert_allclose(clip.timestamps_s, np.array(shown) / 25, atol=1e-3)


def test_repeated_and_unordered_times(videos: Videos, barcode_of: Barcode) -> None:
    clip = read_clip(videos("h264_closed"), AtTimes(times_s=(2.0, 0.4, 2.0, 1.0)))
    assert [barcode_of(frame) for frame in clip.frames] == [50, 10, 50, 25]
    np.testing.assert_allclose(clip.timestamps_s, [2.0, 0.4, 2.0, 1.0])


def test_frame_count_is_known_before_decoding(videos: Videos) -> None:
    info = probe(videos("h264_vfr"))
    for sampling in (
        FramesPerSecond(fps=3.3),
        UniformFrames(count=7, start_s=1.0),
        FramesPerSecond(fps=9, max_frames=4),
    ):
        assert frame_count(sampling, info) == len(read_clip(videos("h264_vfr"), sampling).frames)


@pytest.mark.parametrize("reader", ["pyav", "decord"])
def test_shortest_edge_scales_down_and_never_up(reader: str, videos: Videos, barcode_of: Barcode) -> None:
    pytest.importorskip(reader.replace("pyav", "av"))
    small = read_clip(videos("h264_odd"), UniformFrames(count=3), shortest_edge=24, reader=reader)
    assert small.frames.shape == (3, 24, 32, 3)
    assert [barcode_of(frame) for frame in small.frames] == [0, 30, 59]
    assert read_clip(videos("h264_odd"), UniformFrames(count=1), shortest_edge=500, reader=reader).frames.shape[
        1:3
    ] == (51, 67)


def test_workers_agree(videos: Videos) -> None:
    source = open_source(str(videos("h264_open")), DecodeLimits())
    wanted = np.arange(0, 60, 3)
    one = PyavReader(workers=1).read(source, wanted, (64, 48))
    np.testing.assert_array_equal(one, PyavReader(workers=5).read(source, wanted, (64, 48)))


def test_the_number_of_workers_is_a_setting(videos: Videos) -> None:
    path, sampling = videos("h264_closed"), UniformFrames(count=9)
    one = read_clip(path, sampling, workers=1).frames
    np.testing.assert_array_equal(one, read_clip(path, sampling, workers=3, isolated=True).frames)
    with pytest.raises(UserError, match="workers is 0"):
        read_clip(path, sampling, workers=0)


def test_making_a_video_leaves_the_process_scheduled_as_it_was(videos: Videos) -> None:
    """SVT-AV1 would make it a real-time one where tests run as root: ranks of other tests would wait for it."""
    before = os.sched_getscheduler(0), os.sched_getparam(0).sched_priority
    videos("av1")
    assert (os.sched_getscheduler(0), os.sched_getparam(0).sched_priority) == before

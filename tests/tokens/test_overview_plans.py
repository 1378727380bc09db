"""ZoomVLM's overview and zoom in numbers: the paper's counts, and what holds for every size."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longvid_train.errors import UserError
from longvid_train.tokens.grid import FrameGrid
from longvid_train.tokens.overview import Counting, ZoomPlan, overview_frames, plan_zoom

CLIP = FrameGrid(rows=24, columns=24, stride=2)
CLIP_224 = FrameGrid(rows=16, columns=16, stride=2)
SIGLIP = FrameGrid(rows=27, columns=27, stride=2, partial_cells=True, end_tokens=1)
SIGLIP_256 = FrameGrid(rows=18, columns=18, stride=2, partial_cells=True, end_tokens=1)
JOINT = FrameGrid(rows=16, columns=16, class_tokens=1, joint_frames=8)
JOINT_SMALL = FrameGrid(rows=10, columns=10, class_tokens=1, joint_frames=8)


@pytest.mark.parametrize(
    ("grid", "small", "counting", "zoomed", "tokens"),
    [
        (CLIP, CLIP_224, "table", 10, 2848),
        (CLIP, CLIP_224, "equation", 10, 21 * 64 + 1440),
        (SIGLIP, SIGLIP_256, "table", 12, 4134),
        (SIGLIP, SIGLIP_256, "table", 10, 22 * 81 + 10 * 196),
    ],
)
def test_the_papers_counts(grid: FrameGrid, small: FrameGrid, counting: Counting, zoomed: int, tokens: int) -> None:
    plan = plan_zoom(32, grid, small, counting=counting, zoomed_frames=zoomed)
    assert plan.frame_tokens == tokens
    assert plan.visual_tokens == tokens + grid.end_tokens


def test_overview_frames_are_every_rth() -> None:
    assert overview_frames(9, 1.5) == (0, 1, 3, 4, 6, 7)
    assert overview_frames(32, 1.5)[-1] == 31
    assert overview_frames(32, 1.5, counting="equation")[-1] == 30
    assert overview_frames(5, 1.0) == (0, 1, 2, 3, 4)
    assert overview_frames(10, 1.1, counting="equation") == (0, 1, 2, 3, 4, 5, 6, 7, 8)


@given(
    st.integers(1, 300),
    st.fractions(1, 9, max_denominator=20).map(float),
    st.sampled_from(["table", "equation"]),
    st.sampled_from([1, 2, 8]),
)
def test_overview_frames_are_spread_over_the_video(groups: int, ratio: float, counting: Counting, joint: int) -> None:
    frames = groups * joint
    shown = overview_frames(frames, ratio, counting=counting, joint_frames=joint)
    assert shown[0] == 0
    assert list(shown) == sorted(set(shown))
    assert shown[-1] < frames
    assert len(shown) % joint == 0
    assert len(shown) - joint < frames / ratio + 1
    assert len(shown) >= math.floor((frames - 1) / ratio)
    gaps = [later - earlier for earlier, later in zip(shown, [*shown[1:], frames], strict=True)]
    assert max(gaps) <= math.ceil(ratio) + (counting == "equation")


@given(st.data(), st.integers(1, 6), st.sampled_from(["consecutive", "rearranged"]))
def test_a_joint_tower_sees_chosen_frames_with_their_group(data: st.DataObject, groups: int, grouping: str) -> None:
    plan = plan_zoom(8 * groups, JOINT, JOINT_SMALL, ratio=1.0, zoomed_frames=1, grouping=grouping)  # type: ignore[arg-type]
    chosen = tuple(sorted(data.draw(st.sets(st.integers(0, 8 * groups - 1), min_size=1, max_size=8 * groups))))
    encoded, zoomed = plan.zoomed(chosen)
    assert tuple(encoded[one.frame] for one in zoomed.pathways[0].frames) == chosen
    for group in zoomed.groups:
        places = tuple(encoded[frame] for frame in group)
        assert places in plan.overview.groups
        assert set(places) & set(chosen)
    assert zoomed.frame_tokens == len(chosen) * 257


def zoom_of(**changes: object) -> ZoomPlan:
    return plan_zoom(32, CLIP, CLIP_224, **changes)  # type: ignore[arg-type]


def test_per_frame_towers_encode_the_chosen_frames_alone() -> None:
    encoded, zoomed = zoom_of().zoomed((2, 5, 21))
    assert encoded == (2, 5, 21)
    assert zoomed.groups == ((0,), (1,), (2,))
    assert [(one.frame, one.rows, one.columns) for one in zoomed.pathways[0].frames] == [
        (0, 12, 12),
        (1, 12, 12),
        (2, 12, 12),
    ]


def test_more_zoomed_frames_than_the_overview_has() -> None:
    assert zoom_of(zoomed_frames=22).zoom_tokens == 22 * 144
    with pytest.raises(UserError, match=r"23 frames are to be shown in full, but the overview of 32 frames has 22"):
        zoom_of(zoomed_frames=23)


def test_an_overview_must_be_smaller() -> None:
    with pytest.raises(UserError, match=r"has 144 tokens, one in full has 144.*lower overview_side"):
        plan_zoom(32, CLIP, replace(CLIP_224, rows=24, columns=24))


@pytest.mark.parametrize("ratio", [0.99, float("nan"), float("inf"), -1.0])
def test_a_ratio_below_one(ratio: float) -> None:
    with pytest.raises(UserError, match=r"temporal_ratio is .*at least 1"):
        overview_frames(32, ratio)


def test_an_unknown_counting() -> None:
    with pytest.raises(UserError, match=r"counting 'tabel' is unknown.*table"):
        overview_frames(32, 1.5, counting="tabel")  # type: ignore[arg-type]


def test_a_joint_tower_needs_whole_groups() -> None:
    assert len(overview_frames(32, 1.5, joint_frames=8)) == 24
    with pytest.raises(UserError, match=r"30 frames cannot be encoded by a tower that takes 8 together"):
        overview_frames(30, 1.5, joint_frames=8)

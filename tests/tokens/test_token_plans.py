"""Token plans: every frame once per pathway, in time order, with the counts of the formulas, for all sizes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longvid_train.errors import UserError
from longvid_train.tokens.grid import FrameGrid
from longvid_train.tokens.plan import NOT_A_CELL, Policy, make_plan, most_frames, plan_notes, visual_token_count
from longvid_train.tokens.progressive import ProgressivePlan
from longvid_train.tokens.slowfast import SlowFastPlan
from longvid_train.tokens.uniform import UniformPlan

ONE_VISION = FrameGrid(rows=27, columns=27, stride=2, partial_cells=True, end_tokens=1)
VIDEO_LLAVA = FrameGrid(rows=16, columns=16, class_tokens=1, joint_frames=8)
NEXT_VIDEO = FrameGrid(rows=24, columns=24, stride=2)


@pytest.mark.parametrize(
    ("policy", "frames", "grid", "tokens"),
    [
        (UniformPlan(), 32, ONE_VISION, 6273),
        (UniformPlan(), 256, ONE_VISION, 50_177),
        (UniformPlan(stride=4), 256, ONE_VISION, 256 * 49 + 1),
        (UniformPlan(stride=8), 256, ONE_VISION, 256 * 16 + 1),
        (UniformPlan(), 8, VIDEO_LLAVA, 8 * 257),
        (UniformPlan(), 32, NEXT_VIDEO, 4608),
        (ProgressivePlan(), 256, ONE_VISION, 15_617),
        (ProgressivePlan(low_stride=4), 256, ONE_VISION, 64 * 196 + 192 * 49 + 1),
        (ProgressivePlan(group=16), 256, ONE_VISION, 16 * 196 + 240 * 16 + 1),
        (SlowFastPlan(), 50, NEXT_VIDEO, 3680),
        (SlowFastPlan(slow_frames=5), 45, NEXT_VIDEO, 2160),
        (SlowFastPlan(slow_frames=3), 25, NEXT_VIDEO, 1264),
        (SlowFastPlan(fast_stride=4), 50, ONE_VISION, 6231),
    ],
)
def test_the_papers_counts(policy: Policy, frames: int, grid: FrameGrid, tokens: int) -> None:
    assert make_plan(policy, frames, grid).visual_tokens == visual_token_count(policy, frames, grid) == tokens


@st.composite
def grids(draw: st.DrawFn) -> FrameGrid:
    return FrameGrid(
        rows=draw(st.integers(1, 31)),
        columns=draw(st.integers(1, 31)),
        partial_cells=True,
        class_tokens=draw(st.integers(0, 1)),
        end_tokens=draw(st.integers(0, 1)),
        joint_frames=draw(st.sampled_from([1, 2, 8])),
    )


def strides(grid: FrameGrid) -> st.SearchStrategy[int | tuple[int, int]]:
    pairs = st.tuples(st.integers(1, grid.rows), st.integers(1, grid.columns))
    return st.one_of(st.integers(1, min(grid.rows, grid.columns)), pairs)


def cells(grid: FrameGrid, stride: int | tuple[int, int]) -> int:
    """Cells that pooling makes, by walking the grid."""
    row_stride, column_stride = stride if isinstance(stride, tuple) else (stride, stride)
    return len(range(0, grid.rows, row_stride)) * len(range(0, grid.columns, column_stride))


@given(st.data(), grids(), st.integers(1, 40))
def test_uniform_counts_and_covers(data: st.DataObject, grid: FrameGrid, groups: int) -> None:
    frames = groups * grid.joint_frames
    stride = data.draw(strides(grid))
    plan = make_plan(UniformPlan(stride=stride), frames, grid)
    assert plan.visual_tokens == frames * (cells(grid, stride) + grid.class_tokens) + grid.end_tokens
    assert [one.frame for one in plan.pathways[0].frames] == list(range(frames))


@given(st.data(), grids(), st.integers(1, 60), st.integers(2, 20))
def test_progressive_counts_and_covers(data: st.DataObject, grid: FrameGrid, groups: int, group: int) -> None:
    frames = groups * grid.joint_frames
    high = data.draw(st.integers(1, min(grid.rows, grid.columns)))
    low = data.draw(st.integers(high, min(grid.rows, grid.columns)))
    policy = ProgressivePlan(group=group, high_stride=high, low_stride=low)
    plan = make_plan(policy, frames, grid)
    per_frame = [cells(grid, high if frame in range(0, frames, group) else low) for frame in range(frames)]
    assert plan.visual_tokens == sum(per_frame) + frames * grid.class_tokens + grid.end_tokens
    assert plan.visual_tokens == visual_token_count(policy, frames, grid)
    assert [one.rows * one.columns for one in plan.pathways[0].frames] == per_frame
    assert [one.frame for one in plan.pathways[0].frames] == list(range(frames))
    assert sum(count == cells(grid, high) for count in per_frame) >= math.ceil(frames / group)


@given(st.data(), grids(), st.integers(1, 12), st.integers(0, 50))
def test_slowfast_counts_and_covers(data: st.DataObject, grid: FrameGrid, slow: int, more: int) -> None:
    frames = math.ceil((slow + more) / grid.joint_frames) * grid.joint_frames
    slow_stride, fast_stride = data.draw(strides(grid)), data.draw(strides(grid))
    policy = SlowFastPlan(slow_frames=slow, slow_stride=slow_stride, fast_stride=fast_stride)
    plan = make_plan(policy, frames, grid)
    assert plan.pathway_tokens == {
        "slow": slow * (cells(grid, slow_stride) + grid.class_tokens),
        "fast": frames * (cells(grid, fast_stride) + grid.class_tokens),
    }
    assert (
        plan.visual_tokens
        == visual_token_count(policy, frames, grid)
        == sum(plan.pathway_tokens.values()) + (grid.end_tokens)
    )
    shown = [[one.frame for one in pathway.frames] for pathway in plan.pathways]
    assert shown == [[math.floor(i * frames / slow + 1e-9) for i in range(slow)], list(range(frames))]
    assert len(set(shown[0])) == slow


def test_slow_frames_are_the_public_code_s() -> None:
    slow, fast = make_plan(SlowFastPlan(), 50, NEXT_VIDEO).pathways
    assert (
        [one.frame for one in slow.frames] == list(range(0, 50, 5)) == np.linspace(0, 50, 11).astype(int)[:-1].tolist()
    )
    assert {(one.rows, one.columns) for one in slow.frames} == {(24, 12)}
    assert {(one.rows, one.columns) for one in fast.frames} == {(4, 4)}


@given(st.data(), grids(), st.integers(1, 2))
def test_the_layout_lists_every_token_in_reading_order(data: st.DataObject, grid: FrameGrid, groups: int) -> None:
    frames = groups * grid.joint_frames
    policy = SlowFastPlan(slow_frames=1, slow_stride=data.draw(strides(grid)), fast_stride=data.draw(strides(grid)))
    plan = make_plan(policy, frames, grid)
    expected = []
    for number, pathway in enumerate(plan.pathways):
        for one in pathway.frames:
            expected += [[number, one.frame, NOT_A_CELL, NOT_A_CELL]] * grid.class_tokens
            expected += [[number, one.frame, r, c] for r in range(one.rows) for c in range(one.columns)]
    expected += [[NOT_A_CELL] * 4] * grid.end_tokens
    layout = plan.layout()
    assert layout.dtype == np.int64
    assert layout.tolist() == expected
    assert len(layout) == plan.visual_tokens


@given(st.data(), grids(), st.integers(0, 3000))
def test_most_frames_is_the_last_that_fits(data: st.DataObject, grid: FrameGrid, tokens: int) -> None:
    stride = data.draw(strides(grid))
    policies: list[Policy] = [UniformPlan(stride=stride), ProgressivePlan(high_stride=1, low_stride=stride)]
    policies += [SlowFastPlan(slow_frames=3, slow_stride=1, fast_stride=stride)]
    for policy in policies:
        most = most_frames(policy, grid, tokens)
        fits = [
            frames
            for frames in range(grid.joint_frames, most + 4 * grid.joint_frames, grid.joint_frames)
            if frames >= policy.least_frames and visual_token_count(policy, frames, grid) <= tokens
        ]
        assert most == max(fits, default=0)


@pytest.mark.parametrize(
    ("stride", "message"),
    [
        (5, r"stride 5 does not divide the 24 rows .* use one of \[1, 2, 3, 4, 6, 8, 12, 24\]"),
        (25, "stride 25 does not fit the backbone's 24 x 24 patches; use a number from 1 to 24"),
        ((2, 7), "stride 7 does not divide the 24 columns"),
    ],
)
def test_a_stride_that_does_not_fit_the_grid(stride: int | tuple[int, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_plan(UniformPlan(stride=stride), 4, NEXT_VIDEO)
    with pytest.raises(UserError, match=message):
        make_plan(SlowFastPlan(slow_frames=1, fast_stride=stride), 4, NEXT_VIDEO)
    with pytest.raises(UserError, match=message):
        make_plan(ProgressivePlan(high_stride=1, low_stride=stride), 4, NEXT_VIDEO)


def test_more_frames_than_the_video_has() -> None:
    assert make_plan(UniformPlan(), 20, NEXT_VIDEO, available=20).frame_count == 20
    with pytest.raises(UserError, match="32 frames asked for, but the video has 20; use at most 20"):
        make_plan(UniformPlan(), 32, NEXT_VIDEO, available=20)
    with pytest.raises(UserError, match="32 frames asked for, but the video has 20; use at most 16"):
        make_plan(UniformPlan(), 32, VIDEO_LLAVA, available=20)
    with pytest.raises(UserError, match="the video has 7; the backbone needs at least 8"):
        make_plan(UniformPlan(), 8, VIDEO_LLAVA, available=7)


@pytest.mark.parametrize(
    ("frames", "remedy"), [(12, "use 8 or 16"), (3, "use 8"), (0, "use 8"), (-8, "use 8"), (31, "use 24 or 32")]
)
def test_a_count_the_joint_tower_cannot_take(frames: int, remedy: str) -> None:
    with pytest.raises(UserError, match=rf"{frames} frames cannot be encoded .* takes 8 together; {remedy}$"):
        make_plan(UniformPlan(), frames, VIDEO_LLAVA)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ProgressivePlan(group=1), "group is 1; .*use the uniform plan with stride 2"),
        (lambda: ProgressivePlan(high_stride=8, low_stride=2), "low_stride is 2; it must be at least high_stride = 8"),
        (lambda: UniformPlan(stride=0), "stride is 0; it must be a whole number"),
        (lambda: UniformPlan(stride=(2, 2, 2)), "stride is .2, 2, 2.; it must be"),
        (lambda: UniformPlan(stride=True), "stride is True"),
        (lambda: SlowFastPlan(slow_frames=0), "slow_frames is 0"),
        (lambda: make_plan(SlowFastPlan(), 9, NEXT_VIDEO), "9 frames are fewer than slow_frames = 10; use at least 10"),
        (lambda: FrameGrid(rows=0, columns=3), "rows is 0"),
        (lambda: FrameGrid(rows=3, columns=3, stride=2), "stride 2 does not divide"),
    ],
)
def test_impossible_settings_are_refused(make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_the_notes_say_what_is_shown() -> None:
    policy = ProgressivePlan()
    assert plan_notes(make_plan(policy, 256, ONE_VISION), policy, "consecutive") == [
        "256 frames, the first of every 4 at 14 x 14 cells, the others at 4 x 4: 15617 visual tokens"
    ]

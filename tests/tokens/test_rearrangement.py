"""INTP's rearrangement: the formula, the identity at one group, and who notices it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from longvid_train.errors import UserError
from longvid_train.tokens.grid import FrameGrid
from longvid_train.tokens.plan import make_plan, plan_notes
from longvid_train.tokens.rearrangement import changes_encoding, encoding_groups, rearrangement_note, restore_order
from longvid_train.tokens.uniform import UniformPlan


def grid(joint_frames: int) -> FrameGrid:
    return FrameGrid(rows=2, columns=2, joint_frames=joint_frames)


@given(st.integers(1, 12), st.integers(1, 12))
def test_group_i_takes_every_mth_frame_and_the_result_goes_back(groups: int, joint_frames: int) -> None:
    frames = groups * joint_frames
    rearranged = encoding_groups(frames, joint_frames, "rearranged")
    assert rearranged == tuple(tuple(i + k * groups for k in range(joint_frames)) for i in range(groups))
    encoded = np.array([[100 * i + k for k in range(joint_frames)] for i in range(groups)])
    in_time_order = encoded.reshape(-1)[list(restore_order(rearranged))]
    for i in range(groups):
        for k in range(joint_frames):
            assert in_time_order[i + k * groups] == encoded[i, k]


@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from(["consecutive", "rearranged"]))
def test_every_frame_is_encoded_once_and_comes_back_to_its_place(groups: int, joint_frames: int, grouping) -> None:
    frames = groups * joint_frames
    plan = make_plan(UniformPlan(), frames, grid(joint_frames), grouping=grouping)
    order = [frame for group in plan.groups for frame in group]
    assert sorted(order) == list(range(frames))
    assert all(len(group) == joint_frames and list(group) == sorted(group) for group in plan.groups)
    assert np.array(order)[list(plan.restore_order)].tolist() == list(range(frames))


@given(st.integers(1, 64))
def test_one_group_is_the_identity(joint_frames: int) -> None:
    both = [encoding_groups(joint_frames, joint_frames, grouping) for grouping in ("consecutive", "rearranged")]
    assert both[0] == both[1] == (tuple(range(joint_frames)),)
    assert restore_order(both[0]) == tuple(range(joint_frames))


def encode(frames: NDArray[np.float64], joint_frames: int, grouping, *, tower_sees_all: bool) -> NDArray[np.float64]:
    """A tower that may look across the frames it is given: each feature is the frame plus what its clip holds."""
    plan = make_plan(UniformPlan(), len(frames), grid(joint_frames), grouping=grouping)
    clips = [frames[list(group)] for group in plan.groups]
    features = [np.tanh(clip) + (np.cumsum(clip, axis=0) if tower_sees_all else 0) for clip in clips]
    return np.concatenate(features)[list(plan.restore_order)]


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_a_per_frame_tower_cannot_notice_and_a_joint_one_does(groups: int, joint_frames: int, seed: int) -> None:
    frames = np.random.default_rng(seed).normal(size=(groups * joint_frames, 3))
    per_frame = [encode(frames, joint_frames, g, tower_sees_all=False) for g in ("consecutive", "rearranged")]
    assert np.array_equal(per_frame[0], per_frame[1])
    assert np.array_equal(per_frame[0], np.tanh(frames))
    joint = [encode(frames, joint_frames, g, tower_sees_all=True) for g in ("consecutive", "rearranged")]
    assert np.array_equal(joint[0], joint[1]) == (not changes_encoding(len(frames), grid(joint_frames)))


def test_the_user_is_told_when_it_has_no_effect() -> None:
    assert rearrangement_note(32, grid(8)) is None
    assert "encodes each frame alone" in str(rearrangement_note(32, grid(1)))
    assert "which is one group; use 16 frames or more" in str(rearrangement_note(8, grid(8)))
    plan = make_plan(UniformPlan(), 32, grid(1), grouping="rearranged")
    assert plan_notes(plan, UniformPlan(), "rearranged")[1] == rearrangement_note(32, grid(1))
    assert len(plan_notes(plan, UniformPlan(), "consecutive")) == 1


def test_an_unknown_grouping_is_refused() -> None:
    with pytest.raises(UserError, match="grouping 'rearanged' is unknown; did you mean 'rearranged'"):
        make_plan(UniformPlan(), 8, grid(8), grouping="rearanged")  # type: ignore[arg-type]

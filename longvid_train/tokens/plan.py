"""A token plan: which frames a backbone encodes together, and which cells of them the language model sees, in order.

Pure integers. A policy (`uniform`, `progressive`, `slowfast`) says how frames are shown; the grouping
(`rearrangement`) says how they are encoded; `make_plan` puts both together. The processor, the cost of a run and the
model read the same plan, so every count is known before a frame is decoded.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from longvid_train.errors import UserError
from longvid_train.tokens.grid import FrameGrid, Stride
from longvid_train.tokens.rearrangement import Grouping, encoding_groups, rearrangement_note, restore_order

NOT_A_CELL = -1
"""Row and column of a class token; frame, row and column of a token after the video."""


@dataclass(frozen=True)
class ShownFrame:
    """One frame as the language model sees it: frame index, and its rows and columns of cells after pooling."""

    frame: int
    rows: int
    columns: int


@dataclass(frozen=True, kw_only=True)
class Pathway:
    """Frames shown one after another in time order, each at its own resolution."""

    name: str
    frames: tuple[ShownFrame, ...]


class Policy(Protocol):
    """How the frames of a video are shown. Implementations are frozen dataclasses, one a file."""

    @property
    def least_frames(self) -> int:
        """Frames without which nothing can be shown this way."""
        ...

    def pathways(self, frames: int, grid: FrameGrid) -> tuple[Pathway, ...]:
        """The pathways in the order the language model reads them.

        Raises:
            UserError: a setting does not fit the grid or the number of frames.
        """
        ...

    def frame_tokens(self, frames: int, grid: FrameGrid) -> int:
        """Tokens of all pathways, class tokens included, in closed form; raises as `pathways`."""
        ...

    def describe(self, grid: FrameGrid) -> str:
        """A few words for the user."""
        ...


@dataclass(frozen=True, kw_only=True)
class TokenPlan:
    """Everything about a video's visual tokens that can be known without pixels.

    Attributes:
        grid: the backbone's frame grid.
        frame_count: distinct frames ``N``; each is encoded exactly once.
        groups: frames that pass the tower together.
        pathways: what is shown, in reading order.
    """

    grid: FrameGrid
    frame_count: int
    groups: tuple[tuple[int, ...], ...]
    pathways: tuple[Pathway, ...]

    def __post_init__(self) -> None:
        """Assert the invariants every policy must keep."""
        assert sorted(frame for group in self.groups for frame in group) == list(range(self.frame_count))
        for pathway in self.pathways:
            shown = [one.frame for one in pathway.frames]
            assert all(earlier < later for earlier, later in pairwise(shown))
            assert shown and shown[0] >= 0 and shown[-1] < self.frame_count

    @property
    def visual_tokens(self) -> int:
        """Visual tokens ``T`` of the video, tokens after the video included."""
        return self.frame_tokens + self.grid.end_tokens

    @property
    def frame_tokens(self) -> int:
        """Tokens of the frames alone: what is measured against a visual window (32 x 196 for LLaVA-OneVision)."""
        return sum(self.pathway_tokens.values())

    @property
    def pathway_tokens(self) -> dict[str, int]:
        """Tokens of each pathway, class tokens included."""
        return {
            pathway.name: sum(self.grid.class_tokens + one.rows * one.columns for one in pathway.frames)
            for pathway in self.pathways
        }

    @property
    def restore_order(self) -> tuple[int, ...]:
        """``(N,)`` indices that put frames encoded group after group back in time order."""
        return restore_order(self.groups)

    def layout(self) -> NDArray[np.int64]:
        """``(T, 4)`` int64: pathway, frame, row and column of each visual token, in reading order.

        Class tokens have row and column ``NOT_A_CELL``; tokens after the video also frame and pathway ``NOT_A_CELL``.
        """
        parts = [
            _frame_layout(number, one, self.grid.class_tokens)
            for number, pathway in enumerate(self.pathways)
            for one in pathway.frames
        ]
        return np.concatenate([*parts, np.full((self.grid.end_tokens, 4), NOT_A_CELL, dtype=np.int64)])


def make_plan(
    policy: Policy,
    frames: int,
    grid: FrameGrid,
    *,
    grouping: Grouping = "consecutive",
    available: int | None = None,
) -> TokenPlan:
    """Plan ``frames`` frames under ``policy``.

    Args:
        policy: how frames are shown.
        frames: distinct frames ``N`` to take of the video.
        grid: of the backbone.
        grouping: how a joint-frame tower's groups are formed.
        available: frames the video has, where it is known.

    Raises:
        UserError: more frames than the video has, a count the tower cannot take, or a policy that does not fit.
    """
    if available is not None and frames > available:
        most = available // grid.joint_frames * grid.joint_frames
        remedy = (
            f"use at most {most}" if most else f"the backbone needs at least {grid.joint_frames}: use a longer video"
        )
        raise UserError(f"{frames} frames asked for, but the video has {available}; {remedy}")
    return TokenPlan(
        grid=grid,
        frame_count=frames,
        groups=encoding_groups(frames, grid.joint_frames, grouping),
        pathways=policy.pathways(frames, grid),
    )


def visual_token_count(policy: Policy, frames: int, grid: FrameGrid) -> int:
    """`TokenPlan.visual_tokens` in closed form, without building the plan."""
    return policy.frame_tokens(frames, grid) + grid.end_tokens


def most_frames(policy: Policy, grid: FrameGrid, tokens: int) -> int:
    """The largest number of frames whose visual tokens are at most ``tokens``; 0 if even the smallest plan is larger.

    Raises:
        UserError: the policy does not fit the grid.
    """
    step = grid.joint_frames
    least = -(-policy.least_frames // step)
    if visual_token_count(policy, least * step, grid) > tokens:
        return 0
    fitting, too_many = least, least + 1 + tokens // step
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        if visual_token_count(policy, middle * step, grid) <= tokens:
            fitting = middle
        else:
            too_many = middle
    return fitting * step


def plan_notes(plan: TokenPlan, policy: Policy, grouping: Grouping) -> list[str]:
    """Lines for the user: what is shown, and what has no effect."""
    shown = f"{plan.frame_count} frames, {policy.describe(plan.grid)}: {plan.visual_tokens} visual tokens"
    note = rearrangement_note(plan.frame_count, plan.grid) if grouping == "rearranged" else None
    return [shown] if note is None else [shown, note]


def show(frames: range | tuple[int, ...], grid: FrameGrid, stride: Stride) -> tuple[ShownFrame, ...]:
    """The given frames, all pooled with one stride."""
    rows, columns = grid.pooled(stride)
    return tuple(ShownFrame(frame, rows, columns) for frame in frames)


def _frame_layout(pathway: int, shown: ShownFrame, class_tokens: int) -> NDArray[np.int64]:
    layout = np.full((class_tokens + shown.rows * shown.columns, 4), NOT_A_CELL, dtype=np.int64)
    layout[:, 0] = pathway
    layout[:, 1] = shown.frame
    layout[class_tokens:, 2:] = np.indices((shown.rows, shown.columns)).reshape(2, -1).T
    return layout

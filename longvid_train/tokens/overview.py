"""ZoomVLM's frames (paper Sec. 4.2): a thinned overview at low resolution, then a few of its frames in full.

Of ``N`` frames the overview shows every ``r``-th, at ``floor(i r)``, each from a smaller picture: CLIP's 336 -> 224
pixels make 16 x 16 patches and 8 x 8 cells where 24 x 24 make 12 x 12; SigLIP's 384 -> 256 make 18 x 18 and 9 x 9 where
27 x 27 make 14 x 14. Which frames are shown again is not known before generation; how many tokens they take is.

The paper counts the overview in two ways. Eq. 6 ends at ``i = floor((N - 1) / r)``: 21 of 32 frames for r = 1.5. Its
appendix says 22, ``ceil(N / r)``, and so does its table: 22 x 64 + 10 x 144 = 2848 tokens. (The table's 4134 on SigLIP
is 22 x 81 + 12 x 196: twelve frames in full, where the text says ten.)
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

from longvid_train.errors import UserError, nearest
from longvid_train.tokens.grid import FrameGrid, Stride
from longvid_train.tokens.plan import Pathway, TokenPlan, make_plan, show
from longvid_train.tokens.rearrangement import Grouping
from longvid_train.tokens.uniform import UniformPlan

Counting = Literal["table", "equation"]
"""``"table"`` is ``ceil(N / r)``, ``"equation"`` is ``floor((N - 1) / r) + 1``."""


@dataclass(frozen=True, kw_only=True)
class ZoomPlan:
    """Everything about an overview and its zoom that can be known without pixels.

    Attributes:
        frames: frames ``N`` taken of the video.
        shown: those of the overview, numbers among the ``N``; only these are ever encoded.
        overview: the token plan of these frames; its grid is that of the small pictures.
        grid: of pictures in full.
        stride: pooling stride of both; ``None`` is the trained one.
        zoomed_frames: frames ``k`` of the overview that are shown again in full.
    """

    frames: int
    shown: tuple[int, ...]
    overview: TokenPlan
    grid: FrameGrid
    stride: Stride | None
    zoomed_frames: int

    @property
    def zoomed_frame_tokens(self) -> int:
        """Tokens of one frame in full."""
        return self.grid.frame_tokens(self.grid.stride if self.stride is None else self.stride)

    @property
    def zoom_tokens(self) -> int:
        """Tokens of all frames in full."""
        return self.zoomed_frames * self.zoomed_frame_tokens

    @property
    def frame_tokens(self) -> int:
        """What is measured against a visual window: the overview's frames and those in full."""
        return self.overview.frame_tokens + self.zoom_tokens

    @property
    def visual_tokens(self) -> int:
        """All visual tokens, those after the video included."""
        return self.overview.visual_tokens + self.zoom_tokens

    def zoomed(self, chosen: tuple[int, ...]) -> tuple[tuple[int, ...], TokenPlan]:
        """How chosen frames are encoded in full.

        A tower that sees frames together gets each with the frames it saw it with in the overview.

        Args:
            chosen: places in ``shown``, ascending.

        Returns:
            The places in ``shown`` of the frames to encode, ascending, and the token plan of these, which shows the
            chosen ones only.
        """
        groups = [group for group in self.overview.groups if not set(group).isdisjoint(chosen)]
        encoded = tuple(sorted(place for group in groups for place in group))
        number = {place: index for index, place in enumerate(encoded)}
        frames = tuple(number[place] for place in chosen)
        plan = TokenPlan(
            grid=self.grid,
            frame_count=len(encoded),
            groups=tuple(tuple(number[place] for place in group) for group in groups),
            pathways=(
                Pathway(
                    name="zoom",
                    frames=show(frames, self.grid, self.grid.stride if self.stride is None else self.stride),
                ),
            ),
        )
        return encoded, plan


def plan_zoom(
    frames: int,
    grid: FrameGrid,
    small_grid: FrameGrid,
    *,
    stride: Stride | None = None,
    ratio: float = 1.5,
    counting: Counting = "table",
    zoomed_frames: int = 10,
    grouping: Grouping = "consecutive",
) -> ZoomPlan:
    """Plan an overview of ``frames`` frames.

    Args:
        frames: ``N``, frames taken of the video.
        grid: of the backbone's pictures.
        small_grid: of the overview's.
        stride: pooling stride of both; ``None`` is the trained one.
        ratio: ``r``.
        counting: see `Counting`.
        zoomed_frames: ``k``.
        grouping: how a joint-frame tower's groups are formed.

    Raises:
        UserError: fewer overview frames than ``k``, an overview frame with no fewer tokens than one in full, or a
            number of frames that the tower cannot take.
    """
    shown = overview_frames(frames, ratio, counting=counting, joint_frames=grid.joint_frames)
    overview = make_plan(UniformPlan(stride=stride), len(shown), small_grid, grouping=grouping)
    plan = ZoomPlan(
        frames=frames, shown=shown, overview=overview, grid=grid, stride=stride, zoomed_frames=zoomed_frames
    )
    if zoomed_frames > len(shown):
        raise UserError(
            f"{zoomed_frames} frames are to be shown in full, but the overview of {frames} frames has {len(shown)}; "
            f"take more frames (--frames), or zoom at most {len(shown)} (zoomed_frames)"
        )
    small_tokens = overview.frame_tokens // len(shown)
    if small_tokens >= plan.zoomed_frame_tokens:
        raise UserError(
            f"a frame of the overview has {small_tokens} tokens, one in full has {plan.zoomed_frame_tokens}: this grid "
            "cannot be thinned that way; lower overview_side"
        )
    return plan


def overview_frames(
    frames: int, ratio: float, *, counting: Counting = "table", joint_frames: int = 1
) -> tuple[int, ...]:
    """Which of ``frames`` frames the overview shows, ascending.

    A tower that sees frames together gets whole groups: the count is rounded up, and the frames are spread evenly.

    Args:
        frames: ``N``, a multiple of ``joint_frames``.
        ratio: ``r``, at least 1.
        counting: see `Counting`.
        joint_frames: frames the tower sees together.

    Raises:
        UserError: the ratio is below 1, the counting is unknown, or ``frames`` is no multiple of ``joint_frames``.
    """
    check_thinning(ratio, counting)
    if frames < 1 or frames % joint_frames:
        raise UserError(
            f"{frames} frames cannot be encoded by a tower that takes {joint_frames} together; "
            f"use a multiple of {joint_frames}"
        )
    step = Fraction(repr(ratio))
    count = math.ceil(frames / step) if counting == "table" else math.floor((frames - 1) / step) + 1
    whole = -(-count // joint_frames) * joint_frames
    if whole != count:
        step = Fraction(frames, whole)
    return tuple(math.floor(place * step) for place in range(whole))


def check_thinning(ratio: float, counting: str) -> None:
    """Refuse a ratio below 1 and an unknown counting.

    Raises:
        UserError: naming the value.
    """
    if not 1 <= ratio < math.inf:
        raise UserError(f"temporal_ratio is {ratio}; it must be at least 1 (1 keeps every frame, 1.5 two of three)")
    if counting not in get_args(Counting):
        hint = nearest(str(counting), list(get_args(Counting))) or "."
        raise UserError(f"counting '{counting}' is unknown{hint} Countings: {', '.join(get_args(Counting))}")

"""SlowFast-LLaVA's plan (Xu et al., arXiv:2407.15841): few frames in detail, then all frames coarsely.

The slow pathway shows ``slow_frames`` of the N frames, those at ``floor(i N / slow_frames)`` (the public code's
``linspace(0, N, slow_frames + 1)[:-1]`` cut to whole numbers, here in exact arithmetic). The fast pathway shows all N.
Slow is read before fast. Both pool after the projector.

The defaults are for a 24 x 24 grid: 50 frames make 10 x 24 x 12 + 50 x 4 x 4 = 3680 tokens, 45 (5 slow) 2160, 25 (3
slow) 1264, as the ZoomVLM paper counts. Its 6230 tokens on a 27 x 27 grid are 10 x 27 x 14 + 50 x 7 x 7, i.e.
``fast_stride=4`` (inferred from the count; the paper does not say).
"""

from dataclasses import dataclass
from typing import ClassVar

from longvid_train.errors import UserError
from longvid_train.tokens.grid import FrameGrid, Stride, check_stride
from longvid_train.tokens.plan import Pathway, show


@dataclass(frozen=True, kw_only=True)
class SlowFastPlan:
    """Two pathways over the same frames.

    Attributes:
        slow_frames: frames of the slow pathway.
        slow_stride: pooling stride of the slow pathway.
        fast_stride: pooling stride of the fast pathway.
    """

    kind: ClassVar[str] = "slowfast"

    slow_frames: int = 10
    slow_stride: Stride = (1, 2)
    fast_stride: Stride = 6

    def __post_init__(self) -> None:
        """Refuse an empty slow pathway and what is not a stride."""
        if self.slow_frames < 1:
            raise UserError(f"slow_frames is {self.slow_frames}; it must be at least 1")
        check_stride(self.slow_stride, "slow_stride")
        check_stride(self.fast_stride, "fast_stride")

    @property
    def least_frames(self) -> int:
        """The slow pathway shows different frames."""
        return self.slow_frames

    def pathways(self, frames: int, grid: FrameGrid) -> tuple[Pathway, ...]:
        """Slow, then fast."""
        self._check_frames(frames)
        slow = tuple(index * frames // self.slow_frames for index in range(self.slow_frames))
        return (
            Pathway(name="slow", frames=show(slow, grid, self.slow_stride)),
            Pathway(name="fast", frames=show(range(frames), grid, self.fast_stride)),
        )

    def frame_tokens(self, frames: int, grid: FrameGrid) -> int:
        """``slow_frames`` frames at the slow resolution and all at the fast one."""
        self._check_frames(frames)
        return self.slow_frames * grid.frame_tokens(self.slow_stride) + frames * grid.frame_tokens(self.fast_stride)

    def describe(self, grid: FrameGrid) -> str:
        """Both pathways in cells."""
        (slow_rows, slow_columns), (fast_rows, fast_columns) = (
            grid.pooled(self.slow_stride),
            grid.pooled(self.fast_stride),
        )
        return (
            f"{self.slow_frames} of them at {slow_rows} x {slow_columns} cells, "
            f"then all at {fast_rows} x {fast_columns}"
        )

    def _check_frames(self, frames: int) -> None:
        if frames < self.slow_frames:
            raise UserError(
                f"{frames} frames are fewer than slow_frames = {self.slow_frames}; "
                f"use at least {self.slow_frames} frames or lower slow_frames"
            )

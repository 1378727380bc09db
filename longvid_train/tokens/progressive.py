"""Progressive pooling (Wei and Chen, Visual Context Window Extension, Sec. 3.2, Eq. 6-9).

Groups of ``K`` frames: the first is pooled with stride ``s_h``, the others with the larger ``s_l``. The paper takes N
/ K to be whole; here a last, shorter group also begins with a frame at high resolution.

Errata: the text of Sec. 4.4 calls ``(s_h, s_l) = (2, 4), K = 4`` best; Table 5 says ``(2, 8), K = 4`` (61.3 against
60.7), which Sec. 4.2 also names as the default, as does this file. 256 frames of LLaVA-OneVision then make 15,616
tokens (and its one newline) instead of 50,176.
"""

from dataclasses import dataclass
from typing import ClassVar

from longvid_train.errors import UserError
from longvid_train.tokens.grid import FrameGrid, Stride, check_stride
from longvid_train.tokens.plan import Pathway, ShownFrame


@dataclass(frozen=True, kw_only=True)
class ProgressivePlan:
    """All frames in time order; the first of each group is shown at a higher resolution.

    Attributes:
        group: frames of a group, ``K``.
        high_stride: pooling stride of a group's first frame, ``s_h``.
        low_stride: pooling stride of the others, ``s_l``.
    """

    kind: ClassVar[str] = "progressive"

    group: int = 4
    high_stride: Stride = 2
    low_stride: Stride = 8

    def __post_init__(self) -> None:
        """Refuse groups without a second frame and a low resolution above the high one."""
        if self.group < 2:
            raise UserError(
                f"group is {self.group}; it must be at least 2, for low_stride has no effect otherwise "
                f"(use the uniform plan with stride {self.high_stride})"
            )
        check_stride(self.high_stride, "high_stride")
        check_stride(self.low_stride, "low_stride")
        if _area(self.low_stride) < _area(self.high_stride):
            raise UserError(
                f"low_stride is {self.low_stride}; it must be at least high_stride = {self.high_stride}, "
                "for a larger stride shows fewer cells"
            )

    @property
    def least_frames(self) -> int:
        """One."""
        return 1

    def pathways(self, frames: int, grid: FrameGrid) -> tuple[Pathway, ...]:
        """One pathway of all frames."""
        high, low = grid.pooled(self.high_stride), grid.pooled(self.low_stride)
        shown = tuple(ShownFrame(frame, *(low if frame % self.group else high)) for frame in range(frames))
        return (Pathway(name="progressive", frames=shown),)

    def frame_tokens(self, frames: int, grid: FrameGrid) -> int:
        """``ceil(N / K)`` frames at high resolution, the rest at low."""
        high = -(-frames // self.group)
        return high * grid.frame_tokens(self.high_stride) + (frames - high) * grid.frame_tokens(self.low_stride)

    def describe(self, grid: FrameGrid) -> str:
        """Both resolutions in cells."""
        (high_rows, high_columns), (low_rows, low_columns) = grid.pooled(self.high_stride), grid.pooled(self.low_stride)
        return (
            f"the first of every {self.group} at {high_rows} x {high_columns} cells, "
            f"the others at {low_rows} x {low_columns}"
        )


def _area(stride: Stride) -> int:
    return stride[0] * stride[1] if isinstance(stride, tuple) else stride * stride

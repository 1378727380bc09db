"""Every frame at the same resolution: how LLaVA-OneVision, Video-LLaVA and LLaVA-NeXT-Video were trained.

Table 5 of the visual context window paper writes the stride twice with K = 0: ``(4, 4), 0`` is
``UniformPlan(stride=4)``.
"""

from dataclasses import dataclass
from typing import ClassVar

from longvid_train.tokens.grid import FrameGrid, Stride, check_stride
from longvid_train.tokens.plan import Pathway, show


@dataclass(frozen=True, kw_only=True)
class UniformPlan:
    """All frames in time order, pooled alike.

    Attributes:
        stride: pooling stride over the patch grid; ``None`` is the one the backbone was trained with.
    """

    kind: ClassVar[str] = "uniform"

    stride: Stride | None = None

    def __post_init__(self) -> None:
        """Refuse what is not a stride."""
        if self.stride is not None:
            check_stride(self.stride, "stride")

    @property
    def least_frames(self) -> int:
        """One."""
        return 1

    def pathways(self, frames: int, grid: FrameGrid) -> tuple[Pathway, ...]:
        """One pathway of all frames."""
        return (Pathway(name="uniform", frames=show(range(frames), grid, self._stride(grid))),)

    def frame_tokens(self, frames: int, grid: FrameGrid) -> int:
        """``N (class + ceil(rows / s) ceil(columns / s))``."""
        return frames * grid.frame_tokens(self._stride(grid))

    def describe(self, grid: FrameGrid) -> str:
        """The resolution in cells."""
        rows, columns = grid.pooled(self._stride(grid))
        return f"{rows} x {columns} cells each"

    def _stride(self, grid: FrameGrid) -> Stride:
        return grid.stride if self.stride is None else self.stride

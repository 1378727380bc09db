"""What a backbone makes of one frame, in numbers: the patch grid every token plan pools.

Figures of the public checkpoints: LLaVA-OneVision 27 x 27 patches, stride 2, one ``image_newline`` after the video
(196 N + 1 tokens); Video-LLaVA 16 x 16, stride 1, the class token kept, 8 frames together (257 N; the paper's 256
leaves the class token out); LLaVA-NeXT-Video 24 x 24, stride 2 (144 N).
"""

from dataclasses import dataclass

from longvid_train.errors import UserError

Stride = int | tuple[int, int]
"""Pooling stride over the patch grid: one number, or one for rows and one for columns."""


@dataclass(frozen=True, kw_only=True)
class FrameGrid:
    """The patches of one frame and what the backbone adds to them.

    Attributes:
        rows: patches from top to bottom, before pooling.
        columns: patches from left to right, before pooling.
        stride: the stride the backbone was trained with.
        partial_cells: a stride may leave a rest, which makes a last, smaller cell (bilinear pooling: 27 / 2 -> 14);
            else the stride must divide the grid (average pooling).
        class_tokens: tokens in front of each frame's cells that are not pooled.
        end_tokens: tokens after the whole video.
        joint_frames: frames the tower sees together; 1 if it encodes each frame alone.
    """

    rows: int
    columns: int
    stride: int = 1
    partial_cells: bool = False
    class_tokens: int = 0
    end_tokens: int = 0
    joint_frames: int = 1

    def __post_init__(self) -> None:
        """Refuse grids that are not grids; refuse a trained stride that does not fit."""
        for name, least in (("rows", 1), ("columns", 1), ("class_tokens", 0), ("end_tokens", 0), ("joint_frames", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        self.pooled(self.stride)

    def pooled(self, stride: Stride) -> tuple[int, int]:
        """Rows and columns of cells after pooling with ``stride``: ``ceil(rows / stride)``, and columns likewise.

        Raises:
            UserError: the stride is below 1, larger than the grid, or leaves a rest where ``partial_cells`` is false.
        """
        row_stride, column_stride = _pair(stride)
        return (
            self._cells(row_stride, self.rows, "rows"),
            self._cells(column_stride, self.columns, "columns"),
        )

    def frame_tokens(self, stride: Stride) -> int:
        """Tokens of one frame pooled with ``stride``, class tokens included."""
        rows, columns = self.pooled(stride)
        return self.class_tokens + rows * columns

    def _cells(self, stride: int, patches: int, side: str) -> int:
        if not 1 <= stride <= patches:
            raise UserError(
                f"pooling stride {stride} does not fit the backbone's {self.rows} x {self.columns} patches; "
                f"use a number from 1 to {patches} for the {side}"
            )
        if patches % stride and not self.partial_cells:
            divisors = [one for one in range(1, patches + 1) if patches % one == 0]
            raise UserError(
                f"pooling stride {stride} does not divide the {patches} {side} of the backbone's "
                f"{self.rows} x {self.columns} patches, and this backbone averages whole cells; use one of {divisors}"
            )
        return -(-patches // stride)


def check_stride(stride: object, name: str) -> None:
    """Refuse what is not a stride: a whole number of at least 1, or a pair of them.

    Raises:
        UserError: naming the setting.
    """
    parts = stride if isinstance(stride, tuple) and len(stride) == 2 else (stride,)
    if not all(isinstance(one, int) and not isinstance(one, bool) and one >= 1 for one in parts):
        raise UserError(
            f"{name} is {stride!r}; it must be a whole number of at least 1, or a pair (rows, columns) of them"
        )


def _pair(stride: Stride) -> tuple[int, int]:
    return stride if isinstance(stride, tuple) else (stride, stride)

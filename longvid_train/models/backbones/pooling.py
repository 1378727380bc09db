"""Pooling a frame's grid of patches to the rows and columns of a token plan.

``F`` frames, ``R`` rows and ``K`` columns of patches, ``W`` width.
"""

from collections.abc import Callable

import torch
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d

Pooling = Callable[[torch.Tensor, int, int], torch.Tensor]
"""Maps ``(F, W, R, K)`` to ``(F, W, rows, columns)``."""


def pool_bilinear(grids: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """LLaVA-OneVision's: bilinear resampling to any size, half-pixel centres, no low-pass filter."""
    return interpolate(grids, size=(rows, columns), mode="bilinear")


def pool_average(grids: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Means of equal blocks; ``rows`` and ``columns`` divide the grid."""
    return avg_pool2d(grids, _block(grids, rows, columns))


def pool_max(grids: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Maxima of equal blocks; ``rows`` and ``columns`` divide the grid."""
    return max_pool2d(grids, _block(grids, rows, columns))


def pool_cells(patches: torch.Tensor, side: int, rows: int, columns: int, pooling: Pooling) -> torch.Tensor:
    """Pool frames given as sequences of patches; nothing is computed where no patch is pooled.

    Args:
        patches: ``(F, side * side, W)``, row by row.
        side: rows and columns of patches.
        rows: of the result.
        columns: of the result.
        pooling: one of this file's, or a module with the same arguments.

    Returns:
        ``(F, rows * columns, W)``, row by row.
    """
    if (rows, columns) == (side, side):
        return patches
    grids = patches.reshape(len(patches), side, side, -1).permute(0, 3, 1, 2).contiguous()
    return pooling(grids, rows, columns).flatten(2).transpose(1, 2)


def _block(grids: torch.Tensor, rows: int, columns: int) -> tuple[int, int]:
    height, width = grids.shape[-2:]
    assert height % rows == 0 and width % columns == 0
    return height // rows, width // columns

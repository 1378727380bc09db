"""Where to clip: the range of evenly spaced levels that a calibration sample asks for.

``M`` numbers in each of ``C`` columns share a range. All in float64.
"""

from typing import Literal

import torch

Search = Literal["minmax", "mse"]
SEARCHES: tuple[Search, ...] = ("minmax", "mse")

SHRINKS = 40
SMALLEST_SHRINK = 0.05
REFINEMENTS = 10


def minmax_levels(low: torch.Tensor, high: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and offset of ``2^b`` levels from ``low`` to ``high``; a range of no width gets scale 1."""
    scale = (high - low) / (2**bits - 1)
    return torch.where(scale > 0, scale, 1.0), low


def least_squares_levels(
    x: torch.Tensor, low: torch.Tensor, high: torch.Tensor, bits: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and offset with the least squared error found.

    The range is shrunk towards the column's mean on a grid; from the best, codes and levels are fitted in turn, which
    lowers the error at every turn (Lloyd's algorithm for evenly spaced levels).

    Args:
        x: ``(M, C)``.
        low: ``(C,)`` smallest value.
        high: ``(C,)`` largest value.
        bits: ``b``.

    Returns:
        Scale and offset, each ``(C,)``.
    """
    centre = x.mean(0)
    scale, offset = minmax_levels(low, high, bits)
    error = _error(x, scale, offset, bits)
    for shrink in torch.linspace(SMALLEST_SHRINK, 1.0, SHRINKS, dtype=torch.float64).tolist():
        tried = minmax_levels(centre + shrink * (low - centre), centre + shrink * (high - centre), bits)
        scale, offset, error = _better(x, (scale, offset, error), tried, bits)
    for _ in range(REFINEMENTS):
        scale, offset, error = _better(x, (scale, offset, error), _regressed(x, scale, offset, bits), bits)
    return scale, offset


def codes_of(x: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, bits: int) -> torch.Tensor:
    """``clamp(round((x - offset) / scale))`` as floating-point numbers."""
    return ((x - offset) / scale).round().clamp(0, 2**bits - 1)


def _error(x: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, bits: int) -> torch.Tensor:
    return (codes_of(x, scale, offset, bits) * scale + offset - x).square().sum(0)


def _better(
    x: torch.Tensor,
    best: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    tried: tuple[torch.Tensor, torch.Tensor],
    bits: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Column by column, the one of both with the smaller error."""
    scale, offset, error = best
    tried_error = _error(x, *tried, bits)
    won = tried_error < error
    return (
        torch.where(won, tried[0], scale),
        torch.where(won, tried[1], offset),
        torch.where(won, tried_error, error),
    )


def _regressed(
    x: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, bits: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Least squares of ``x`` on its codes; a column with one code in use keeps its levels."""
    codes = codes_of(x, scale, offset, bits)
    mean_code, mean_x = codes.mean(0), x.mean(0)
    spread = (codes - mean_code).square().sum(0)
    slope = ((codes - mean_code) * (x - mean_x)).sum(0) / torch.where(spread > 0, spread, 1.0)
    usable = (spread > 0) & (slope > 0)
    return torch.where(usable, slope, scale), torch.where(usable, mean_x - slope * mean_code, offset)

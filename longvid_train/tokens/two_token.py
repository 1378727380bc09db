"""LLaMA-VID's token plan: a context token and ``n x n`` content tokens a frame (paper Sec. 3.2).

Pure integers: the processor, the data module and the model all count visual tokens with these functions, so a sequence
length is known before any frame is decoded.
"""

from longvid_train.errors import UserError
from longvid_train.types import ALL_PATCHES


def content_token_count(content_grid: int, patch_grid: int) -> int:
    """Content tokens of one frame.

    Args:
        content_grid: ``ALL_PATCHES`` or ``n`` for an ``n x n`` average-pooled grid.
        patch_grid: patches along one side of the tower's square grid.

    Raises:
        UserError: ``content_grid`` is negative or does not divide ``patch_grid`` (the paper pools with
            kernel = stride = patch_grid // n, which only covers the grid when n divides it).
    """
    if content_grid == ALL_PATCHES:
        return patch_grid * patch_grid
    if content_grid < 0 or patch_grid % content_grid:
        divisors = [n for n in range(1, patch_grid + 1) if patch_grid % n == 0]
        raise UserError(
            f"content_grid {content_grid} does not divide the tower's {patch_grid} x {patch_grid} patches; "
            f"use one of {divisors}, or {ALL_PATCHES} for every patch"
        )
    return content_grid * content_grid


def tokens_per_frame(content_grid: int, patch_grid: int, *, context: bool = True, content: bool = True) -> int:
    """Visual tokens of one frame: one context token (if any) followed by the content tokens (if any)."""
    return int(context) + (content_token_count(content_grid, patch_grid) if content else 0)

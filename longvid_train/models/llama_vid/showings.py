"""Which (frame, prompt) pairs a batch asks for and where each pair's tokens go: integers only.

``F`` distinct frames, ``V`` showings, ``R`` prompts, ``U`` distinct (frame, prompt) pairs, ``T`` visual tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from longvid_train.errors import UserError
from longvid_train.tokens.two_token import content_token_count


@dataclass(frozen=True, kw_only=True)
class ShowingPlan:
    """What the head must compute once, and the gather that puts it into reading order.

    The head's pool of tokens is ``[context tokens of the pairs; content tokens of each content group in turn]``.

    Attributes:
        pair_frames: ``(U,)`` frame of each distinct (frame, prompt) pair; empty without context tokens.
        pair_prompts: ``(U,)`` prompt row of each pair.
        content_groups: for each distinct content grid, the grid and the ``(D,)`` distinct frames to pool with it.
        order: ``(T,)`` row of the pool for each visual token, in reading order.
    """

    pair_frames: torch.Tensor
    pair_prompts: torch.Tensor
    content_groups: list[tuple[int, torch.Tensor]]
    order: torch.Tensor


def plan_showings(
    spans: torch.Tensor,
    content_grids: torch.Tensor,
    *,
    frame_count: int,
    prompt_count: int,
    patch_grid: int,
    context: bool,
    content: bool,
) -> ShowingPlan:
    """Plan one batch on the CPU.

    Args:
        spans: ``(V, 3)`` int64 rows ``[first_frame, frame_count, prompt_row]``.
        content_grids: ``(V,)`` int64.
        frame_count: ``F``, to check the spans.
        prompt_count: ``R``, to check the spans.
        patch_grid: patches along one side.
        context: whether frames have a context token.
        content: whether frames have content tokens.

    Raises:
        UserError: a span outside the frames or prompts given, or a grid that does not divide the patches.
    """
    spans, content_grids = spans.cpu(), content_grids.cpu()
    _check_spans(spans, content_grids, frame_count, prompt_count, context)
    counts = spans[:, 1]
    starts = counts.cumsum(0) - counts
    frames = torch.arange(int(counts.sum())) + (spans[:, 0] - starts).repeat_interleave(counts)
    prompts = spans[:, 2].repeat_interleave(counts)
    grids = content_grids.repeat_interleave(counts)

    shown_tokens = torch.full((len(frames),), int(context), dtype=torch.long)
    base = 0
    pairs = torch.empty(0, 2, dtype=torch.long)
    pair_rows = frames
    if context:
        pairs, pair_rows = torch.unique(torch.stack([frames, prompts], dim=1), dim=0, return_inverse=True)
        base = len(pairs)
    content_rows = torch.zeros_like(frames)
    content_groups = []
    for grid, shown, distinct, row in _content_groups(grids, frames) if content else ():
        tokens = content_token_count(grid, patch_grid)
        shown_tokens[shown] += tokens
        content_rows[shown] = base + row * tokens
        base += len(distinct) * tokens
        content_groups.append((grid, distinct))
    order = _reading_order(shown_tokens, pair_rows, content_rows, context=context)
    return ShowingPlan(pair_frames=pairs[:, 0], pair_prompts=pairs[:, 1], content_groups=content_groups, order=order)


def _content_groups(
    grids: torch.Tensor, frames: torch.Tensor
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield, for each distinct grid, the shown frames that use it, the distinct ones, and each one's row there."""
    for grid in torch.unique(grids).tolist():
        shown = (grids == grid).nonzero().squeeze(1)
        distinct, row = torch.unique(frames[shown], return_inverse=True)
        yield grid, shown, distinct, row


def _reading_order(
    shown_tokens: torch.Tensor, pair_rows: torch.Tensor, content_rows: torch.Tensor, *, context: bool
) -> torch.Tensor:
    """Pool row of every visual token: a shown frame's context row, then its consecutive content rows."""
    starts = shown_tokens.cumsum(0) - shown_tokens
    within = torch.arange(int(shown_tokens.sum())) - starts.repeat_interleave(shown_tokens)
    order = content_rows.repeat_interleave(shown_tokens) + within - int(context)
    if context:
        order[starts] = pair_rows
    return order


def _check_spans(
    spans: torch.Tensor, content_grids: torch.Tensor, frame_count: int, prompt_count: int, context: bool
) -> None:
    if spans.ndim != 2 or spans.shape[1] != 3 or content_grids.shape != spans.shape[:1]:
        raise UserError(
            f"visual_spans has shape {tuple(spans.shape)} and content_grids {tuple(content_grids.shape)}; "
            "they must be (V, 3) and (V,)"
        )
    for row, (first, count, prompt) in enumerate(spans.tolist()):
        if first < 0 or count < 1 or first + count > frame_count:
            raise UserError(
                f"visual_spans row {row} asks for {count} frames from frame {first} but the batch has {frame_count}"
            )
        if context and not 0 <= prompt < prompt_count:
            raise UserError(f"visual_spans row {row} asks for prompt {prompt} but the batch has {prompt_count} prompts")

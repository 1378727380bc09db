"""LLaMA-VID's head: tower features and prompts to visual tokens, ``[context ; content]`` a frame (paper Sec. 3.2).

``F`` frames, ``P`` patches, ``C`` tower width, ``H`` language-model width, ``D`` frames of one content group,
``U`` distinct (frame, prompt) pairs.
"""

from collections.abc import Callable
from math import isqrt

import torch
from torch import nn

from longvid_train.errors import UserError
from longvid_train.models.llama_vid.context_attention import ContextAttention
from longvid_train.models.llama_vid.showings import ShowingPlan
from longvid_train.types import ALL_PATCHES

TextDecoder = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]


def build_content_projector(vision_width: int, language_width: int) -> nn.Sequential:
    """``Linear(C -> H), GELU, Linear(H -> H)`` (public name ``mm_projector``)."""
    return nn.Sequential(nn.Linear(vision_width, language_width), nn.GELU(), nn.Linear(language_width, language_width))


def pool_patches(patches: torch.Tensor, content_grid: int) -> torch.Tensor:
    """Average-pool ``(D, P, C)`` patches of a square to ``(D, n * n, C)``, row by row; ``ALL_PATCHES`` keeps all."""
    if content_grid == ALL_PATCHES:
        return patches
    if content_grid == 1:
        return patches.mean(dim=1, keepdim=True)
    frames, count, width = patches.shape
    side = round(count**0.5)
    block = side // content_grid
    cells = patches.reshape(frames, content_grid, block, content_grid, block, width).mean(dim=(2, 4))
    return cells.reshape(frames, content_grid * content_grid, width)


def check_cells(features: torch.Tensor, content_grids: torch.Tensor, patch_grid: int) -> None:
    """Check that features hold all patches of each frame, or pooled cells from which every grid can be pooled.

    Args:
        features: ``(F, 1 + P, C)``, or ``(F, 1 + n * n, C)`` from a cache that keeps ``n x n`` cells.
        content_grids: ``(V,)`` int64.
        patch_grid: patches along one side.

    Raises:
        UserError: neither.
    """
    side = isqrt(features.shape[1] - 1)
    if side == patch_grid and features.shape[1] == 1 + side * side:
        return
    if side < 1 or features.shape[1] != 1 + side * side or patch_grid % side:
        raise UserError(
            f"features have {features.shape[1]} tokens a frame; the tower gives CLS and {patch_grid} x {patch_grid} "
            "patches, or a cache that keeps grid:n CLS and n x n cells"
        )
    for grid in torch.unique(content_grids).tolist():
        if grid == ALL_PATCHES or side % grid:
            raise UserError(
                f"features hold {side} x {side} pooled cells a frame, from which content_grid {grid} cannot be made; "
                f"use a divisor of {side}, or features with all patches"
            )


def content_tokens(projector: nn.Sequential, features: torch.Tensor, plan: ShowingPlan) -> list[torch.Tensor]:
    """Project the pooled patches of every content group; each result is ``(D * n * n, H)``.

    Features on another device than the projector are pooled where they are.
    """
    weight = next(projector.parameters())
    pooled = (
        pool_patches(features[frames.to(features.device), 1:].to(weight.dtype), grid)
        for grid, frames in plan.content_groups
    )
    return [projector(cells.to(weight.device)).flatten(0, 1) for cells in pooled]


def context_tokens(
    decoder: TextDecoder,
    attention: ContextAttention,
    features: torch.Tensor,
    plan: ShowingPlan,
    prompt_input_ids: torch.Tensor,
    prompt_attention_mask: torch.Tensor,
    chunk: int,
) -> list[torch.Tensor]:
    """Context tokens of the distinct (frame, prompt) pairs, ``chunk`` at a time; the parts add up to ``(U, H)``.

    Features on another device than the prompts go there a chunk at a time.
    """
    parts = []
    for frames, prompts in zip(
        torch.split(plan.pair_frames, chunk), torch.split(plan.pair_prompts, chunk), strict=True
    ):
        pair_features = features[frames.to(features.device)].to(prompt_input_ids.device)
        rows = prompts.to(prompt_input_ids.device)
        queries, mask = decoder(pair_features, prompt_input_ids[rows], prompt_attention_mask[rows])
        parts.append(attention(queries, mask, pair_features[:, 1:]))
    return parts

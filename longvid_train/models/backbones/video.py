"""From frames to the visual tokens of a plan, a chunk of frames at a time.

``N`` frames, ``T`` visual tokens, ``H`` language-model width.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator

import torch

from longvid_train.errors import UserError
from longvid_train.models.backbones.protocol import Backbone
from longvid_train.tokens.plan import TokenPlan

FRAME_CHUNK = 16
"""Frames whose unpooled features exist at once."""

_Showing = tuple[int, int, int]
"""First token, rows and columns of one frame in one pathway."""


def video_tokens(
    backbone: Backbone,
    pixel_values: torch.Tensor,
    plan: TokenPlan,
    *,
    frame_chunk: int = FRAME_CHUNK,
    store_device: torch.device | str | None = None,
) -> torch.Tensor:
    """Encode a video's frames and arrange their tokens as the plan says.

    Each frame passes the tower once, in the plan's groups; of a chunk only the pooled tokens are kept.

    Args:
        backbone: from `load_backbone`.
        pixel_values: ``(N, 3, side, side)`` float, in time order, on any device; chunks go to the model.
        plan: made for this backbone's grid.
        frame_chunk: frames encoded at once, rounded to whole groups of a joint-frame tower and at least one.
        store_device: where the tokens are kept; default: where they are made.

    Returns:
        ``(T, H)`` in the model's dtype.

    Raises:
        UserError: the plan is for another grid or number of frames, or the backbone cannot make a resolution.
    """
    if len(pixel_values) != plan.frame_count:
        raise UserError(f"the plan is for {plan.frame_count} frames, but {len(pixel_values)} are given; plan for these")
    return streamed_tokens(backbone, [pixel_values], plan, frame_chunk=frame_chunk, store_device=store_device)


def streamed_tokens(
    backbone: Backbone,
    chunks: Iterable[torch.Tensor],
    plan: TokenPlan,
    *,
    frame_chunk: int = FRAME_CHUNK,
    store_device: torch.device | str | None = None,
) -> torch.Tensor:
    """`video_tokens` of frames that come a few at a time, so that all their pixels never exist together.

    A frame whose group is not whole yet waits for the others; rearranged groups become whole with the last frames.

    Args:
        backbone: from `load_backbone`.
        chunks: ``(n, 3, side, side)`` float each, ``N`` frames in time order over all of them.
        plan: made for this backbone's grid.
        frame_chunk: as `video_tokens`.
        store_device: as `video_tokens`.

    Returns:
        ``(T, H)`` in the model's dtype.

    Raises:
        UserError: as `video_tokens`.
    """
    grid = backbone.facts.grid
    if plan.grid != grid:
        raise UserError(f"the plan is for {plan.grid}, but {backbone.facts.model_type} has {grid}; plan with its grid")
    if frame_chunk < 1:
        raise UserError(f"frame_chunk is {frame_chunk}; it must be at least 1")
    step = max(1, frame_chunk // grid.joint_frames)
    showings = _showings(plan)
    parts: dict[int, torch.Tensor] = {}
    for frames, pixel_values in _whole_groups(chunks, plan, step):
        features = backbone.encode(pixel_values)
        parts |= _chunk_tokens(backbone, features, [showings[frame] for frame in frames], store_device)
    end = backbone.end_tokens()
    tokens = torch.cat([*(parts[start] for start in sorted(parts)), end.to(store_device or end.device)])
    assert len(tokens) == plan.visual_tokens, "fewer frames came than the plan has"
    return tokens


def _whole_groups(
    chunks: Iterable[torch.Tensor], plan: TokenPlan, step: int
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Yield frame numbers and pixels of at most ``step`` groups at a time, as soon as they are whole."""
    groups = sorted(plan.groups, key=max)
    waiting: dict[int, torch.Tensor] = {}
    come = done = 0
    for chunk in chunks:
        waiting |= dict(enumerate(chunk, start=come))
        come += len(chunk)
        whole = sum(max(group) < come for group in groups[done:])
        for first in range(done, done + whole, step):
            frames = [frame for group in groups[first : min(first + step, done + whole)] for frame in group]
            yield frames, torch.stack([waiting.pop(frame) for frame in frames])
        done += whole


def _showings(plan: TokenPlan) -> dict[int, list[_Showing]]:
    """Where each frame stands in the reading order, and at which resolution."""
    showings: dict[int, list[_Showing]] = defaultdict(list)
    start = 0
    for pathway in plan.pathways:
        for shown in pathway.frames:
            showings[shown.frame].append((start, shown.rows, shown.columns))
            start += plan.grid.class_tokens + shown.rows * shown.columns
    return showings


def _chunk_tokens(
    backbone: Backbone, features: torch.Tensor, showings: list[list[_Showing]], store_device: torch.device | str | None
) -> dict[int, torch.Tensor]:
    """Tokens of one chunk by their place in the sequence; frames of equal resolution are pooled together."""
    alike: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for index, of_frame in enumerate(showings):
        for start, rows, columns in of_frame:
            alike[rows, columns].append((index, start))
    parts = {}
    for (rows, columns), places in alike.items():
        chosen = features if len(places) == len(features) else features[[index for index, _ in places]]
        tokens = backbone.frame_tokens(chosen, rows, columns)
        tokens = tokens.to(store_device or tokens.device)
        parts.update({start: one for (_, start), one in zip(places, tokens, strict=True)})
    return parts

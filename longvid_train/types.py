"""The shape legend of the whole package and the values that cross rooms.

``B`` rows of a batch, ``S`` tokens of a row, ``F`` distinct frames of a batch, ``N`` frames of one clip, ``P`` patches
of a frame (CLS not counted), ``R`` prompts (human turns), ``Lp`` tokens of a prompt, ``V`` showings (one each time a
clip or image stands in a turn), ``T`` visual tokens, ``C`` tower width, ``Q`` Q-Former width, ``M`` queries, ``H``
language-model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, NotRequired, TypedDict

import numpy as np

if TYPE_CHECKING:  # torch takes seconds to load, and rooms that only need ``VideoClip`` run in many short processes
    import torch
    from numpy.typing import NDArray

IGNORE_INDEX = -100
"""Label of a position that is not supervised (torch's and transformers' convention)."""

ALL_PATCHES = 0
"""Content grid meaning "keep every patch"; ``n >= 1`` means an ``n x n`` average-pooled grid."""


@dataclass(frozen=True, kw_only=True)
class VideoClip:
    """Decoded frames of one video.

    Attributes:
        frames: ``(N, height, width, 3)`` uint8 RGB, upright.
        timestamps_s: ``(N,)`` float64, presentation time of each frame counted from the file's first frame.
        duration_s: length of the whole video in seconds, from its first frame to the end of its last.
        reader: which reader decoded it, e.g. ``"pyav"`` or ``"decord"``.
        path: the file it came from.
    """

    frames: NDArray[np.uint8]
    timestamps_s: NDArray[np.float64]
    duration_s: float
    reader: str
    path: str


@dataclass(frozen=True)
class Subtitle:
    """One subtitle line, shown from ``start_s`` (inclusive) to ``end_s`` (exclusive) of the video."""

    start_s: float
    end_s: float
    text: str


class VisualInputs(TypedDict):
    """What the model needs to make visual tokens, beside the text.

    Attributes:
        pixel_values: ``(F, 3, h, w)`` float, every distinct frame of the batch once. Absent when ``visual_features`` is
            given.
        visual_features: ``(F, 1 + P, C)`` tower output with CLS first, instead of ``pixel_values`` (a follow-up
            question, a feature cache; a cache may keep ``n x n`` pooled cells in place of the patches).
        visual_spans: ``(V, 3)`` int64 rows ``[first_frame, frame_count, prompt_row]`` in reading order over the batch.
        content_grids: ``(V,)`` int64, ``ALL_PATCHES`` or ``n`` for ``n x n`` content tokens a frame.
        prompt_input_ids: ``(R, Lp)`` int64, the text decoder's tokens of each prompt, padded on the right.
        prompt_attention_mask: ``(R, Lp)`` int64, 1 on real tokens.
    """

    pixel_values: NotRequired[torch.Tensor]
    visual_features: NotRequired[torch.Tensor]
    visual_spans: torch.Tensor
    content_grids: torch.Tensor
    prompt_input_ids: torch.Tensor
    prompt_attention_mask: torch.Tensor


class TextInputs(TypedDict):
    """The language model's side of a batch.

    Attributes:
        input_ids: ``(B, S)`` int64. Every visual token stands as one ``visual_token_id``.
        attention_mask: ``(B, S)`` int64, 1 on real tokens. Absent from a packed batch, which has no padding.
        position_ids: ``(1, S)`` int64 of a packed batch: the samples stand one behind the other in one row, and
            positions start at 0 with each, which is what keeps their attention apart.
        labels: ``(B, S)`` int64, ``IGNORE_INDEX`` where nothing is supervised.
    """

    input_ids: torch.Tensor
    attention_mask: NotRequired[torch.Tensor]
    position_ids: NotRequired[torch.Tensor]
    labels: NotRequired[torch.Tensor]


class Shortening(NamedTuple):
    """What the token budget took from one row.

    Attributes:
        frames: frames left out, over all media of the row.
        visual_tokens: visual tokens left out.
        text_tokens: tokens of text left out, whole turns included.
    """

    frames: int
    visual_tokens: int
    text_tokens: int


class Batch(TypedDict):
    """One collated batch: the model's keyword arguments, the ids of its samples for messages, and what each was
    shortened by (only rows that were)."""

    text: TextInputs
    visual: VisualInputs | None
    sample_ids: list[str]
    shortened: dict[str, Shortening]

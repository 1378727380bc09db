"""A backbone's processor under an adaptation: what the data room needs to know of both, before weights are loaded.

``F`` frames of a showing, ``R`` prompts.
"""

from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from longvid_train.adaptation.settings import Adaptation
from longvid_train.errors import UserError
from longvid_train.models.backbones.processing import BackboneProcessor
from longvid_train.models.backbones.protocol import BackboneFacts
from longvid_train.rope.scale import TokenCounts, extent_of
from longvid_train.tokens.plan import TokenPlan, make_plan
from longvid_train.tokens.uniform import UniformPlan
from longvid_train.types import ALL_PATCHES

PLANNED = -1
"""Content grid of a showing whose cells the adaptation's token plan decides: videos. Images show `ALL_PATCHES`."""


def tokens_by_frame(plan: TokenPlan) -> tuple[int, ...]:
    """Visual tokens in front of what follows each frame, ``F`` numbers; tokens after the video count to its last.

    Of a plan with several pathways, which come one after another, all stand with the last frame.
    """
    if len(plan.pathways) > 1:
        return (*(0,) * (plan.frame_count - 1), plan.visual_tokens)
    counts = [plan.grid.class_tokens + one.rows * one.columns for one in plan.pathways[0].frames]
    counts[-1] += plan.grid.end_tokens
    return tuple(counts)


class PlannedProcessor:
    """Tokenizer and pixels of a checkpoint, and the visual tokens of an adaptation's plans.

    Args:
        processor: of the checkpoint.
        adaptation: how videos are shown and how the window is extended.

    Raises:
        UserError: the adaptation is for other backbones.
    """

    def __init__(self, processor: BackboneProcessor, adaptation: Adaptation) -> None:
        adaptation.check_backbone(processor.facts.model_type)
        self.checkpoint = processor
        self.adaptation = adaptation

    @property
    def facts(self) -> BackboneFacts:
        """Of the checkpoint."""
        return self.checkpoint.facts

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's."""
        return self.checkpoint.tokenizer

    @property
    def visual_token_id(self) -> int:
        """Placeholder of one visual token, of images too."""
        return self.facts.placeholder_id

    @property
    def visual_grid(self) -> int:
        """Patches along one side of a frame."""
        return self.facts.grid.rows

    @property
    def frame_settings(self) -> dict[str, Any]:
        """What decides the pixels, as JSON values."""
        return self.checkpoint.picture_settings

    @property
    def reads_patches(self) -> bool:
        """False: cells are pooled patches, nothing attends to the patches themselves."""
        return False

    def preprocess_frames(self, frames: NDArray[np.uint8]) -> torch.Tensor:
        """``(F, H, W, 3)`` uint8 RGB -> ``(F, 3, side, side)`` float32."""
        return self.checkpoint.pixel_values(frames)

    def encode_prompts(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Two ``(R, 0)`` int64: a backbone has no text decoder beside its language model."""
        empty = torch.zeros(len(prompts), 0, dtype=torch.long)
        return empty, empty.clone()

    def plan(self, content_grid: int, frames: int) -> TokenPlan:
        """The plan of one showing.

        Args:
            content_grid: `PLANNED` for a video, `ALL_PATCHES` for an image: one frame without pooling.
            frames: ``F``.

        Raises:
            UserError: the plan does not fit the number of frames or the grid, or this backbone reads videos only.
        """
        grid = self.facts.grid
        if content_grid == PLANNED:
            return self.adaptation.plan_frames(frames, grid)
        assert content_grid == ALL_PATCHES and frames == 1, "images are shown with all their patches"
        if not self.facts.shows_images:
            raise UserError(
                f"a '{self.facts.model_type}' reads images with weights that its videos do not pass, and only videos "
                "are read here; use videos"
            )
        return make_plan(self._image_policy, 1, grid)

    def frame_tokens(self, content_grid: int, frames: int) -> tuple[int, ...]:
        """`tokens_by_frame` of `plan`; raises as that."""
        return tokens_by_frame(self.plan(content_grid, frames))

    def window_tokens(self, content_grid: int, frames: int) -> int:
        """Visual tokens that are measured against the visual window: those of the frames alone."""
        return self.plan(content_grid, frames).frame_tokens

    def check_window(self, visual: int, total: int) -> None:
        """Refuse a row that is over the extended window.

        Args:
            visual: sum of `window_tokens` over its showings.
            total: its whole length.

        Raises:
            UserError: naming the tokens, the window and the number to change.
        """
        extent_of(self.adaptation.window, TokenCounts(visual=visual, total=total), self.facts.trained)

    @cached_property
    def _image_policy(self) -> UniformPlan:
        return UniformPlan(stride=1)

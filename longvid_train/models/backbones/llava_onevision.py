"""LLaVA-OneVision (arXiv 2408.03326): SigLIP-384, the projector first, bilinear pooling, one newline after the video.

27 x 27 patches, trained on up to 32 frames of 14 x 14: 196 N + 1 tokens, a visual window of 32 x 196 = 6272.
"""

from typing import Any, ClassVar

import torch
from transformers import LlavaOnevisionForConditionalGeneration

from longvid_train.models.backbones.pooling import pool_bilinear
from longvid_train.models.backbones.projected import ProjectedFrames
from longvid_train.models.backbones.protocol import BackboneFacts
from longvid_train.models.backbones.tower import left_out, patches_a_side
from longvid_train.models.backbones.windows import trained_windows
from longvid_train.tokens.grid import FrameGrid

TRAINED_FRAMES = 32
"""Of the public checkpoints; a configuration can say otherwise in ``trained_frames``, as the nano model's does."""

STRIDE = 2
"""Fixed in transformers' ``apply_pooling``; no configuration names it."""


class LlavaOnevision(ProjectedFrames):
    """transformers' LLaVA-OneVision."""

    model_class: ClassVar[Any] = LlavaOnevisionForConditionalGeneration

    def __init__(self, model: Any) -> None:
        super().__init__(
            model,
            self.facts_of(model.config),
            tower=model.model.vision_tower,
            pooling=pool_bilinear,
            left_out=left_out(model.config),
        )

    @staticmethod
    def facts_of(config: Any) -> BackboneFacts:
        """What the configuration says.

        Raises:
            UserError: a tower that the family does not have.
        """
        left_out(config)
        side = patches_a_side(config)
        grid = FrameGrid(rows=side, columns=side, stride=STRIDE, partial_cells=True, end_tokens=1)
        return BackboneFacts(
            model_type=type(config).model_type,
            grid=grid,
            trained=trained_windows(config, grid, getattr(config, "trained_frames", TRAINED_FRAMES)),
            image_side=config.vision_config.image_size,
            medium="video",
            placeholder_id=config.video_token_id,
            prompt="<|im_start|>user <video>\n{question}<|im_end|><|im_start|>assistant\n",
        )

    def end_tokens(self) -> torch.Tensor:
        """``(1, H)``: ``image_newline``."""
        newline: torch.Tensor = self.model.model.image_newline
        return newline[None]

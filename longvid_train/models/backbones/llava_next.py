"""LLaVA-1.6 (transformers' ``llava_next``): each frame is the base view of an image, without tiles and newlines.

24 x 24 patches, 576 tokens a frame at the trained stride of 1; plans pool after the projector by averaging blocks, as
SlowFast-LLaVA does (arXiv 2407.15841). It saw one image in at most five views in training: 5 x 576 = 2880 tokens.
"""

from typing import Any, ClassVar

from transformers import LlavaNextForConditionalGeneration

from longvid_train.models.backbones.pooling import pool_average
from longvid_train.models.backbones.projected import ProjectedFrames
from longvid_train.models.backbones.protocol import BackboneFacts
from longvid_train.models.backbones.tower import left_out, patches_a_side
from longvid_train.models.backbones.windows import trained_windows
from longvid_train.tokens.grid import FrameGrid

TRAINED_VIEWS = 5


class LlavaNext(ProjectedFrames):
    """transformers' LLaVA-NeXT."""

    model_class: ClassVar[Any] = LlavaNextForConditionalGeneration

    def __init__(self, model: Any) -> None:
        super().__init__(
            model,
            self.facts_of(model.config),
            tower=model.model.vision_tower,
            pooling=pool_average,
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
        grid = FrameGrid(rows=side, columns=side)
        return BackboneFacts(
            model_type=type(config).model_type,
            grid=grid,
            trained=trained_windows(config, grid, TRAINED_VIEWS),
            image_side=config.vision_config.image_size,
            medium="image",
            placeholder_id=config.image_token_id,
            prompt=None,  # Vicuna, Mistral and Yi checkpoints differ
        )

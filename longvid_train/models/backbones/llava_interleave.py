"""LLaVA-Interleave (arXiv 2407.07895; transformers' ``llava`` with a SigLIP tower): every frame is one image.

transformers has no video for it: as images, a frame is all its 27 x 27 patches, which is the trained stride here. The
strides of a plan pool after the projector as LLaVA-OneVision does (2 -> 14 x 14 = 196).

Its model card does not state how many frames a training video had, so it has no visual window here: a window that
measures visual tokens needs ``trained_tokens``.
"""

from typing import Any, ClassVar

from transformers import LlavaForConditionalGeneration

from longvid_train.errors import UserError
from longvid_train.models.backbones.pooling import pool_bilinear
from longvid_train.models.backbones.projected import ProjectedFrames
from longvid_train.models.backbones.protocol import BackboneFacts
from longvid_train.models.backbones.tower import left_out, patches_a_side
from longvid_train.models.backbones.windows import trained_windows
from longvid_train.tokens.grid import FrameGrid

TOWER = "siglip_vision_model"


class LlavaInterleave(ProjectedFrames):
    """transformers' LLaVA with LLaVA-Interleave's tower."""

    model_class: ClassVar[Any] = LlavaForConditionalGeneration

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
            UserError: another ``llava`` (LLaVA-1.5 has a CLIP tower and was trained on one image at a time).
        """
        if config.vision_config.model_type != TOWER:
            raise UserError(
                f"a 'llava' with a '{config.vision_config.model_type}' tower is no LLaVA-Interleave ({TOWER}); "
                "give an interleave checkpoint, or LLaVA-1.6"
            )
        left_out(config)
        side = patches_a_side(config)
        grid = FrameGrid(rows=side, columns=side, partial_cells=True)
        return BackboneFacts(
            model_type=type(config).model_type,
            grid=grid,
            trained=trained_windows(config, grid, frames=None),
            image_side=config.vision_config.image_size,
            medium="image",
            placeholder_id=config.image_token_id,
            prompt="<|im_start|>user <image>\n{question}<|im_end|><|im_start|>assistant",
        )

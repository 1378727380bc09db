"""Video-LLaVA (arXiv 2311.10122) as transformers ports it: every patch and the class token of each frame, no pooling.

16 x 16 patches and the class token: 257 tokens a frame (the INTP paper counts 256), trained on 8 frames, 2056 tokens.
transformers' tower has no temporal attention and encodes each frame alone.
"""

from typing import Any, ClassVar

from transformers import VideoLlavaForConditionalGeneration

from longvid_train.errors import UserError
from longvid_train.models.backbones.pooling import pool_average
from longvid_train.models.backbones.projected import ProjectedFrames
from longvid_train.models.backbones.protocol import BackboneFacts
from longvid_train.models.backbones.tower import class_tokens, patches_a_side
from longvid_train.models.backbones.windows import trained_windows
from longvid_train.tokens.grid import FrameGrid

TRAINED_FRAMES = 8


class VideoLlava(ProjectedFrames):
    """transformers' Video-LLaVA."""

    model_class: ClassVar[Any] = VideoLlavaForConditionalGeneration

    def __init__(self, model: Any) -> None:
        super().__init__(
            model, self.facts_of(model.config), tower=model.model.video_tower, pooling=pool_average, left_out=0
        )

    @staticmethod
    def facts_of(config: Any) -> BackboneFacts:
        """What the configuration says; ``vision_feature_select_strategy`` is for images only.

        Raises:
            UserError: a tower that the family does not have.
        """
        if class_tokens(config) != 1:
            raise UserError(
                f"a 'video_llava' with a '{config.vision_config.model_type}' tower has no class token; "
                "use a clip_vision_model"
            )
        side = patches_a_side(config)
        grid = FrameGrid(rows=side, columns=side, class_tokens=1)
        return BackboneFacts(
            model_type=type(config).model_type,
            grid=grid,
            trained=trained_windows(config, grid, TRAINED_FRAMES),
            image_side=config.vision_config.image_size,
            medium="video",
            placeholder_id=config.video_token_id,
            prompt="USER: <video>\n{question} ASSISTANT:",
            shows_images=False,  # it has a second tower for them
        )

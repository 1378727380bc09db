"""LLaVA-NeXT-Video (7B, 7B-DPO, 34B): patches are pooled before the projector, nothing stands after the video.

24 x 24 patches averaged in blocks of 2 x 2: 144 tokens a frame. The model card gives 32 training frames: 4608 tokens.
"""

from typing import Any, ClassVar

import torch
from transformers import LlavaNextVideoForConditionalGeneration

from longvid_train.errors import UserError
from longvid_train.models.backbones.pooling import Pooling, pool_average, pool_cells, pool_max
from longvid_train.models.backbones.protocol import BackboneFacts
from longvid_train.models.backbones.tower import left_out, patches_a_side, tower_features
from longvid_train.models.backbones.windows import trained_windows
from longvid_train.tokens.grid import FrameGrid

TRAINED_FRAMES = 32


class LlavaNextVideo:
    """transformers' LLaVA-NeXT-Video."""

    model_class: ClassVar[Any] = LlavaNextVideoForConditionalGeneration

    def __init__(self, model: Any) -> None:
        self.model = model
        self.facts = self.facts_of(model.config)
        self._left_out = left_out(model.config)
        self._pooling = self._pooling_of(model.config.spatial_pool_mode)

    @staticmethod
    def facts_of(config: Any) -> BackboneFacts:
        """What the configuration says.

        Raises:
            UserError: a tower that the family does not have, or a stride that does not divide its grid.
        """
        left_out(config)
        side = patches_a_side(config)
        grid = FrameGrid(rows=side, columns=side, stride=config.spatial_pool_stride)
        return BackboneFacts(
            model_type=type(config).model_type,
            grid=grid,
            trained=trained_windows(config, grid, TRAINED_FRAMES),
            image_side=config.vision_config.image_size,
            medium="video",
            placeholder_id=config.video_token_id,
            prompt=None,  # 7B: USER: ... ASSISTANT:, 34B: ChatML
        )

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """``(F, 3, side, side)`` pixels -> ``(F, P, C)``, not projected; see `Backbone.encode`."""
        layer, side = self.model.config.vision_feature_layer, self.facts.image_side
        features = tower_features(self.model.model.vision_tower, pixel_values, layer, side)
        return features[:, self._left_out :]

    def frame_tokens(self, features: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """``(F, P, C)`` -> ``(F, rows * columns, H)``: pooled, then projected.

        Raises:
            UserError: the pooling is learned (``conv``) and has another stride.
        """
        cells = pool_cells(features, self.facts.grid.rows, rows, columns, self._pooling)
        tokens: torch.Tensor = self.model.model.multi_modal_projector(cells)
        return tokens

    def end_tokens(self) -> torch.Tensor:
        """``(0, H)``: nothing stands after the video."""
        embedding = self.model.get_input_embeddings().weight
        return embedding.new_empty(0, embedding.shape[1])

    def _pooling_of(self, mode: str) -> Pooling:
        return {"average": pool_average, "max": pool_max, "conv": self._learned}[mode]

    def _learned(self, grids: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        grid = self.facts.grid
        if (rows, columns) != grid.pooled(grid.stride):
            raise UserError(
                f"{rows} x {columns} cells asked for, but this checkpoint's pooling is a convolution of stride "
                f"{grid.stride}; use stride {grid.stride}"
            )
        pooled: torch.Tensor = self.model.model.vision_resampler.pool(grids)
        return pooled

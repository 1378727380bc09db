"""The common half of the backbones that project every patch and pool what the projector gives.

LLaVA-OneVision, Video-LLaVA, LLaVA-Interleave and LLaVA-1.6; LLaVA-NeXT-Video pools first and stands alone.
``F`` frames, ``P`` patches, ``H`` language-model width.
"""

from typing import Any

import torch
from torch import nn

from longvid_train.models.backbones.pooling import Pooling, pool_cells
from longvid_train.models.backbones.protocol import BackboneFacts
from longvid_train.models.backbones.tower import tower_features


class ProjectedFrames:
    """Tower, projector, pooling.

    Args:
        model: transformers' model.
        facts: of its configuration.
        tower: the part of it that encodes frames.
        pooling: how patches become cells.
        left_out: leading tokens of the tower that are not projected.
    """

    def __init__(self, model: Any, facts: BackboneFacts, *, tower: nn.Module, pooling: Pooling, left_out: int) -> None:
        self.model = model
        self.facts = facts
        self._tower = tower
        self._pooling = pooling
        self._left_out = left_out

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """``(F, 3, side, side)`` pixels -> ``(F, class_tokens + P, H)``, projected; see `Backbone.encode`."""
        layer, side = self.model.config.vision_feature_layer, self.facts.image_side
        features = tower_features(self._tower, pixel_values, layer, side)
        projected: torch.Tensor = self.model.model.multi_modal_projector(features[:, self._left_out :])
        return projected

    def frame_tokens(self, features: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """``(F, class_tokens + P, H)`` -> ``(F, class_tokens + rows * columns, H)``; class tokens are not pooled."""
        grid = self.facts.grid
        cells = pool_cells(features[:, grid.class_tokens :], grid.rows, rows, columns, self._pooling)
        return torch.cat([features[:, : grid.class_tokens], cells], dim=1)

    def end_tokens(self) -> torch.Tensor:
        """``(0, H)``: nothing stands after the video."""
        embedding = self.model.get_input_embeddings().weight
        return embedding.new_empty(0, embedding.shape[1])

"""What a backbone's shapes cost: the bridge from a configuration to `longvid_train.cost`. No weights are made."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from longvid_train.cost.decoder import DecoderShape, decoder_shape
from longvid_train.cost.inference import VisionCost
from longvid_train.cost.tower import TowerShape, tower_shape
from longvid_train.models.backbones.llava_next_video import LlavaNextVideo
from longvid_train.models.backbones.load import backbone_skeleton
from longvid_train.models.backbones.protocol import BackboneFacts
from longvid_train.models.backbones.tower import CLASS_TOKENS
from longvid_train.models.backbones.video import FRAME_CHUNK
from longvid_train.tokens.plan import TokenPlan

PIXEL_BYTES = 4
"""Preprocessed pixels are float32 until the tower casts them."""


@dataclass(frozen=True, kw_only=True)
class BackboneShapes:
    """A backbone in numbers.

    Attributes:
        facts: its grid and windows.
        decoder: its language model.
        tower: the tower that encodes frames.
        vision_elements: all parameters outside the language model, unused towers included.
        projector_ops: operations of the projector on one row.
        pools_first: the projector sees pooled cells, not patches.
    """

    facts: BackboneFacts
    decoder: DecoderShape
    tower: TowerShape
    vision_elements: int
    projector_ops: int
    pools_first: bool

    def vision_cost(self, plan: TokenPlan, *, value_bytes: int = 2, frame_chunk: int = FRAME_CHUNK) -> VisionCost:
        """What encoding a plan's frames costs, a chunk of frames at a time.

        Args:
            plan: made for this backbone's grid.
            value_bytes: of a parameter and an activation.
            frame_chunk: frames in the tower at once.
        """
        frames, chunk = plan.frame_count, min(frame_chunk, plan.frame_count)
        grid = self.facts.grid
        projected = plan.frame_tokens if self.pools_first else frames * (grid.class_tokens + grid.rows * grid.columns)
        width, side = self.decoder.width, self.facts.image_side
        features = chunk * self.tower.tokens * (self.tower.width + width)
        kept = plan.visual_tokens * width
        pixels = chunk * 3 * side**2 * (PIXEL_BYTES + value_bytes)
        return VisionCost(
            ops=self.tower.ops(frames) + projected * self.projector_ops,
            elements=self.vision_elements,
            working_bytes=value_bytes * (self.tower.working_values(chunk) + features + kept) + pixels,
            chunks=-(-frames // chunk),
        )


def backbone_shapes(config: Any) -> BackboneShapes:
    """Count a configuration's model.

    Raises:
        UserError: no backbone has this configuration, or its language model is of an unknown kind.
    """
    backbone = backbone_skeleton(config)
    facts, decoder = backbone.facts, decoder_shape(config.get_text_config())
    vision = config.vision_config
    everything = sum(parameter.numel() for parameter in backbone.model.parameters())
    linear = [m for m in backbone.model.model.multi_modal_projector.modules() if isinstance(m, nn.Linear)]
    return BackboneShapes(
        facts=facts,
        decoder=decoder,
        tower=tower_shape(vision, class_tokens=CLASS_TOKENS[vision.model_type], joint_frames=facts.grid.joint_frames),
        vision_elements=everything - decoder.elements,
        projector_ops=2 * sum(layer.in_features * layer.out_features for layer in linear),
        pools_first=isinstance(backbone, LlavaNextVideo),
    )

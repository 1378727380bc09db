"""Shapes of a ViT tower and what they count to. ``n`` tokens a frame, ``C`` width, ``m`` MLP width."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TowerShape:
    """The sizes of a vision tower that encodes frames alone, or in groups by temporal attention.

    Attributes:
        layers: encoder layers that run.
        width: ``C``.
        intermediate: ``m``.
        patches: patches a frame.
        class_tokens: tokens the tower adds in front of them.
        patch_inputs: values of one patch, ``3 p p``.
        joint_frames: frames a temporal attention in each layer sees together; 1 for none.
    """

    layers: int
    width: int
    intermediate: int
    patches: int
    class_tokens: int
    patch_inputs: int
    joint_frames: int = 1

    @property
    def tokens(self) -> int:
        """``n``, tokens a frame inside the tower."""
        return self.patches + self.class_tokens

    @property
    def temporal(self) -> bool:
        """Whether each layer attends over frames too."""
        return self.joint_frames > 1

    def ops(self, frames: int) -> int:
        """Operations of encoding ``frames`` frames: patch embedding, projections, MLP and attention."""
        embedding = 2 * self.patches * self.patch_inputs * self.width
        attentions = 2 if self.temporal else 1
        matrices = attentions * 4 * self.width**2 + 2 * self.width * self.intermediate
        pairs = self.tokens**2 + (self.tokens * self.joint_frames if self.temporal else 0)
        layer = 2 * self.tokens * matrices + 4 * pairs * self.width
        return frames * (embedding + self.layers * layer)

    def working_values(self, frames: int) -> int:
        """Numbers alive at once in the middle of a layer: the larger of its attention and its MLP.

        The residual and the normed input stand beside queries, keys, values and their mix, or beside the MLP's two
        inner activations; attention kernels keep no scores.
        """
        return frames * self.tokens * max(6 * self.width, 2 * self.width + 2 * self.intermediate)


def tower_shape(vision_config: Any, *, class_tokens: int, joint_frames: int = 1) -> TowerShape:
    """The shape a transformers vision configuration (CLIP, SigLIP, EVA of InstructBLIP) describes.

    Every layer counts: transformers runs them all also where ``vision_feature_layer`` reads the last but one.
    """
    side = vision_config.image_size // vision_config.patch_size
    return TowerShape(
        layers=vision_config.num_hidden_layers,
        width=vision_config.hidden_size,
        intermediate=vision_config.intermediate_size,
        patches=side**2,
        class_tokens=class_tokens,
        patch_inputs=3 * vision_config.patch_size**2,
        joint_frames=joint_frames,
    )

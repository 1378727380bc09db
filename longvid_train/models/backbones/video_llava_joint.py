"""Video-LLaVA (arXiv 2311.10122) with its own tower, which sees ``joint_frames`` frames together (8 in public).

`JointVideoLlavaForConditionalGeneration` is transformers' Video-LLaVA with `JointVisionTower`; `from_public_weights`
fills it from the tensors of LanguageBind/Video-LLaVA-7B under their public names.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from transformers import VideoLlavaConfig, VideoLlavaForConditionalGeneration

from longvid_train.errors import UserError
from longvid_train.models.backbones.joint_tower import JointVisionTower
from longvid_train.models.backbones.protocol import BackboneFacts
from longvid_train.models.backbones.video_llava import VideoLlava
from longvid_train.models.backbones.windows import trained_windows

PUBLIC_PREFIXES = {
    "lm_head.": "lm_head.",
    "model.embed_tokens.": "model.language_model.embed_tokens.",
    "model.layers.": "model.language_model.layers.",
    "model.norm.": "model.language_model.norm.",
    "model.mm_projector.0.": "model.multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "model.multi_modal_projector.linear_2.",
    "model.image_tower.image_tower.": "model.image_tower.",
    "model.video_tower.video_tower.": "model.video_tower.",
}
"""Public prefix -> prefix here; what follows is the same."""

COMPUTED = (".embeddings.position_ids", ".rotary_emb.inv_freq")
"""Ends of public names of tensors that are computed, not trained."""


class JointVideoLlavaConfig(VideoLlavaConfig):
    """transformers' configuration, and the frames that the video tower sees together."""

    model_type = "video_llava_joint"
    joint_frames: int = 8


class JointVideoLlavaForConditionalGeneration(VideoLlavaForConditionalGeneration):
    """transformers' Video-LLaVA with the joint-frame tower; videos are whole groups of ``joint_frames`` frames."""

    config_class = JointVideoLlavaConfig
    config: JointVideoLlavaConfig

    def __init__(self, config: JointVideoLlavaConfig) -> None:
        super().__init__(config)
        self.model.video_tower = JointVisionTower(config.vision_config, config.joint_frames)


class VideoLlavaJoint(VideoLlava):
    """Video-LLaVA with temporal attention."""

    model_class: ClassVar[Any] = JointVideoLlavaForConditionalGeneration

    @staticmethod
    def facts_of(config: Any) -> BackboneFacts:
        """Those of transformers' port, with frames in groups; trained on one group.

        Raises:
            UserError: a tower that the family does not have.
        """
        facts = VideoLlava.facts_of(config)
        grid = replace(facts.grid, joint_frames=config.joint_frames)
        return replace(facts, grid=grid, trained=trained_windows(config, grid, config.joint_frames))


def from_public_weights(
    config: JointVideoLlavaConfig, weights: Mapping[str, torch.Tensor]
) -> JointVideoLlavaForConditionalGeneration:
    """A model of ``config`` with public weights, strictly: none missing, none left over.

    Args:
        config: with the public model's sizes.
        weights: tensors by their names in LanguageBind/Video-LLaVA-7B.

    Raises:
        UserError: naming the first weight that does not fit.
    """
    found = {_own_name(name): tensor for name, tensor in weights.items() if not name.endswith(COMPUTED)}
    with torch.device("meta"):
        wanted = JointVideoLlavaForConditionalGeneration(config).state_dict()
    for kind, names in (("lacks", wanted.keys() - found.keys()), ("has left over", found.keys() - wanted.keys())):
        if names:
            raise UserError(f"the public checkpoint {kind} {len(names)} weights, first {min(names)}; check its files")
    for name, tensor in found.items():
        if tensor.shape != wanted[name].shape:
            raise UserError(
                f"{name} has shape {tuple(tensor.shape)}, the configuration says {tuple(wanted[name].shape)}; "
                "use the checkpoint's own sizes"
            )
    model = JointVideoLlavaForConditionalGeneration(config)
    model.load_state_dict(found)
    return model.eval()


def _own_name(name: str) -> str:
    for public, own in PUBLIC_PREFIXES.items():
        if name.startswith(public):
            return own + name.removeprefix(public)
    raise UserError(f"{name} is no weight of a public Video-LLaVA; check the checkpoint's files")

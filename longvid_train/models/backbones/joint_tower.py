"""LanguageBind's video tower (arXiv 2310.01852), which Video-LLaVA was trained with: CLIP with temporal attention.

Every layer first adds an embedding of the frame's place and lets each patch position attend over the frames of its
group, then goes on as CLIP. transformers' port of Video-LLaVA left these weights out. Module names are the public ones.
``G`` groups of ``K`` frames, ``P`` patches a frame, ``C`` tower width.
"""

from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, initialization
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer


class JointEncoderLayer(CLIPEncoderLayer):
    """One CLIP layer with attention over frames in front of it.

    Args:
        config: of the tower.
        joint_frames: ``K``.
    """

    def __init__(self, config: CLIPVisionConfig, joint_frames: int) -> None:
        super().__init__(config)
        self.joint_frames = joint_frames
        self.temporal_embedding = nn.Parameter(torch.zeros(1, joint_frames, config.hidden_size))
        self.temporal_attn = CLIPAttention(config)
        self.temporal_layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """``(G * K, 1 + P, C)`` -> the same, each group of ``K`` frames after the other."""
        frames, tokens, width = hidden_states.shape
        grouped = hidden_states.reshape(frames // self.joint_frames, self.joint_frames, tokens, width)
        by_place = grouped.transpose(1, 2).reshape(-1, self.joint_frames, width)
        if self.joint_frames > 1:
            by_place = by_place + self.temporal_embedding
        attended, _ = self.temporal_attn(self.temporal_layer_norm1(by_place))
        by_place = by_place + attended
        mixed = by_place.reshape(-1, tokens, self.joint_frames, width).transpose(1, 2)
        spatial: torch.Tensor = super().forward(mixed.reshape(frames, tokens, width), attention_mask, **kwargs)
        return spatial


class JointVisionTower(CLIPVisionModel):
    """CLIP's vision model with `JointEncoderLayer`s; frames come in whole groups.

    Args:
        config: of the tower.
        joint_frames: ``K``, frames of a group.
    """

    _no_split_modules = ("JointEncoderLayer", "CLIPVisionEmbeddings")

    def __init__(self, config: CLIPVisionConfig, joint_frames: int) -> None:
        super().__init__(config)
        self.encoder.layers = nn.ModuleList(
            JointEncoderLayer(config, joint_frames) for _ in range(config.num_hidden_layers)
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, JointEncoderLayer):
            initialization.normal_(module.temporal_embedding, mean=0.0, std=module.embed_dim**-0.5)

"""The two vision towers of LLaMA-VID: transformers' own encoders, cut where LLaMA-VID reads them.

``F`` frames, ``P`` patches a frame, ``C`` tower width. Both towers give ``(F, 1 + P, C)`` with CLS first.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import interpolate
from transformers import CLIPVisionConfig, CLIPVisionModel, InstructBlipVisionConfig, InstructBlipVisionModel

from longvid_train.models.llama_vid.configuration import (
    CLIP_MODEL_TYPE,
    LlamaVidConfig,
    selected_layer_count,
)


class EvaVisionTower(InstructBlipVisionModel):
    """EVA-CLIP ViT (paper Sec. 3.1): InstructBLIP's vision model without its last LayerNorm.

    The LayerNorm is left out of the module, so neither a checkpoint nor a data-parallel reducer meets a parameter that
    nothing uses. Loads from a folder saved by ``InstructBlipVisionModel.save_pretrained``.
    """

    _keys_to_ignore_on_load_unexpected = (r"post_layernorm\.",)

    def __init__(self, config: InstructBlipVisionConfig) -> None:
        super().__init__(config)
        self.post_layernorm = nn.Identity()

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode ``(F, 3, h, w)`` pixels into ``(F, 1 + P, C)``; any ``h``, ``w`` that are multiples of the patch size.

        Position embeddings are interpolated (bicubic) when the size is not the one the tower was trained at.
        """
        return self(pixel_values=pixel_values, interpolate_pos_encoding=True).last_hidden_state


class ClipVisionTower(CLIPVisionModel):
    """CLIP ViT read at hidden state ``select_layer``; layers above it are not built.

    Loads from a folder saved by ``CLIPVisionModel.save_pretrained``.

    Args:
        config: transformers' configuration of the whole tower.
        select_layer: hidden state to give, ``-2`` in the public LLaMA-VID models.
    """

    _keys_to_ignore_on_load_unexpected = (r"post_layernorm\.", r"encoder\.layers\.\d+\.")

    def __init__(self, config: CLIPVisionConfig, select_layer: int = -2) -> None:
        super().__init__(config)
        self.encoder.layers = self.encoder.layers[: selected_layer_count(config.num_hidden_layers, select_layer)]
        self.post_layernorm = nn.Identity()

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode ``(F, 3, h, w)`` pixels into ``(F, 1 + P, C)``; see ``EvaVisionTower.encode``."""
        return self(pixel_values=pixel_values, interpolate_pos_encoding=True).last_hidden_state


VisionTower = EvaVisionTower | ClipVisionTower


def build_vision_tower(config: LlamaVidConfig) -> VisionTower:
    """Build the tower that ``config.vision_config`` describes, with fresh weights."""
    if config.vision_config.model_type == CLIP_MODEL_TYPE:
        return ClipVisionTower(config.vision_config, config.vision_select_layer)
    return EvaVisionTower(config.vision_config)


def resize_position_embedding(positions: torch.Tensor, side: int) -> torch.Tensor:
    """Interpolate learned positions to ``side x side`` patches: bicubic in float32, as the public code does.

    Args:
        positions: ``(..., 1 + P, C)``, CLS first, ``P`` a square number.
        side: patches along one side afterwards.

    Returns:
        ``(..., 1 + side ** 2, C)`` in the dtype of ``positions``; ``positions`` itself when the size is right already.
    """
    old = round((positions.shape[-2] - 1) ** 0.5)
    if old == side:
        return positions
    width = positions.shape[-1]
    square = positions[..., 1:, :].float().reshape(1, old, old, width).permute(0, 3, 1, 2)
    resized = interpolate(square, size=(side, side), mode="bicubic", align_corners=False)
    patches = resized.permute(0, 2, 3, 1).reshape(*positions.shape[:-2], side * side, width)
    return torch.cat([positions[..., :1, :], patches.to(positions.dtype)], dim=-2)


def resize_tower(tower: EvaVisionTower, image_size: int) -> None:
    """Make pictures of ``image_size`` pixels a side the tower's own, by resizing its position embeddings in place."""
    embeddings = tower.embeddings
    positions = resize_position_embedding(embeddings.position_embedding.data, image_size // embeddings.patch_size)
    embeddings.position_embedding = nn.Parameter(positions)
    embeddings.image_size, embeddings.num_positions = image_size, positions.shape[1]
    embeddings.num_patches = positions.shape[1] - 1
    tower.config.image_size = image_size


def encode_in_chunks(tower: VisionTower, pixel_values: torch.Tensor, chunk: int) -> torch.Tensor:
    """Encode ``(F, 3, h, w)`` pixels ``chunk`` frames at a time; without a graph when every tower parameter is frozen.

    Returns:
        ``(F, 1 + P, C)`` in the tower's dtype.
    """
    trained = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in tower.parameters())
    with torch.set_grad_enabled(trained):
        parts: list[Any] = [tower.encode(part) for part in torch.split(pixel_values, chunk)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

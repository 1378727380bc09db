"""A vision tower inside a transformers model: which of its tokens and layers a checkpoint reads.

``F`` frames, ``P`` patches a frame, ``C`` tower width.
"""

from typing import Any

import torch

from longvid_train.errors import UserError

CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}
"""Class tokens in front of the patches, by the tower's ``model_type``."""


def patches_a_side(config: Any) -> int:
    """Rows (and columns) of patches that the tower makes of one frame."""
    return int(config.vision_config.image_size) // int(config.vision_config.patch_size)


def class_tokens(config: Any) -> int:
    """Class tokens of the tower.

    Raises:
        UserError: the tower is of a kind that these checkpoints do not have.
    """
    kind = config.vision_config.model_type
    if kind not in CLASS_TOKENS:
        raise UserError(
            f"a '{config.model_type}' with a '{kind}' tower is not supported; use one of {', '.join(CLASS_TOKENS)}"
        )
    return CLASS_TOKENS[kind]


def left_out(config: Any) -> int:
    """Leading tokens that ``vision_feature_select_strategy`` takes away, so that exactly the patches remain.

    Raises:
        UserError: a class token would remain among the patches, or a patch would be taken for one.
    """
    strategy, found = config.vision_feature_select_strategy, class_tokens(config)
    if found != (strategy == "default"):
        wanted = "default" if found else "full"
        raise UserError(
            f"vision_feature_select_strategy is '{strategy}', but the '{config.vision_config.model_type}' tower has "
            f"{found} class tokens; set it to '{wanted}' in config.json"
        )
    return found


def tower_features(tower: Any, pixel_values: torch.Tensor, layer: int | list[int], side: int) -> torch.Tensor:
    """Hidden states of one layer, or of several side by side, of a chunk of frames.

    Args:
        tower: transformers' vision model.
        pixel_values: ``(F, 3, side, side)`` float on any device.
        layer: ``vision_feature_layer`` of the configuration; before the tower's last norm, as transformers reads it.
        side: of the pictures; position embeddings are interpolated where it is not the configured one.

    Returns:
        ``(F, class_tokens + P, C)``, or ``(..., C * layers)``. It carries no graph when the tower is frozen.

    Raises:
        UserError: the frames are not of that size.
    """
    if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != (3, side, side):
        raise UserError(
            f"pixel_values have shape {tuple(pixel_values.shape)}; this model takes (frames, 3, {side}, {side}): "
            "preprocess the frames with the model's own processor"
        )
    first = next(tower.parameters())
    pixel_values = pixel_values.to(device=first.device, dtype=first.dtype)
    trained = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in tower.parameters())
    with torch.set_grad_enabled(trained):
        states = tower(
            pixel_values,
            output_hidden_states=layer,
            interpolate_pos_encoding=side != tower.config.image_size,
            return_dict=True,
        ).hidden_states
        features: torch.Tensor = (
            states[layer] if isinstance(layer, int) else torch.cat([states[one] for one in layer], dim=-1)
        )
    return features

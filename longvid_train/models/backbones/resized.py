"""A backbone that reads smaller (or larger) pictures than it was trained on, with its own weights.

The tower interpolates its position embeddings, as transformers does (``interpolate_pos_encoding``); patches keep their
size, so there are fewer of them, and the trained pooling stride is kept.
"""

import copy
from dataclasses import replace
from typing import Any

from longvid_train.errors import UserError
from longvid_train.models.backbones.llama_vid import LlamaVid
from longvid_train.models.backbones.load import MODEL_TYPES, AnyBackbone
from longvid_train.models.backbones.protocol import BackboneFacts


def resized_facts(config: Any, side: int) -> BackboneFacts:
    """What a checkpoint's configuration says of pictures of another size; its trained windows stay.

    Args:
        config: transformers' configuration of the checkpoint.
        side: pixels a side.

    Raises:
        UserError: a LLaMA-VID, or pictures whose patches the trained stride does not fit.
    """
    kind = MODEL_TYPES[type(config).model_type]
    if issubclass(kind, LlamaVid):
        raise UserError(
            "a LLaMA-VID's frames have as many tokens at any resolution (a context token and a content grid); an "
            "overview of smaller pictures would save nothing, leave zoom out"
        )
    own = kind.facts_of(config)
    small = copy.deepcopy(config)
    small.vision_config.image_size = side
    try:
        return replace(kind.facts_of(small), trained=own.trained)
    except UserError as error:
        patch = int(config.vision_config.patch_size)
        step = patch * own.grid.stride
        raise UserError(
            f"pictures of {side} pixels a side make {side // patch} x {side // patch} patches ({error}); "
            f"use a multiple of {step} pixels, e.g. {max(side // step, 1) * step}"
        ) from None


def resized(backbone: AnyBackbone, side: int) -> AnyBackbone:
    """The same model as a backbone of pictures with ``side`` pixels a side; raises as `resized_facts`."""
    facts = resized_facts(backbone.model.config, side)
    twin = type(backbone)(backbone.model)
    twin.facts = facts
    return twin

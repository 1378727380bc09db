"""Export an extension into a checkpoint that plain transformers loads: ``rope_type: longrope`` with one factor a
frequency.

``longrope`` divides each unscaled frequency by its own factor, so any extension is exact in it. Both factor lists are
the same, so that the frequencies do not depend on the sequence's length; the exported model therefore has this one
``s`` for short sequences too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from longvid_train.errors import UserError
from longvid_train.rope.extension import Extension
from longvid_train.rope.rotary import find_rotary


def longrope_parameters(config: Any, extension: Extension) -> dict[str, Any]:
    """``rope_parameters`` of the extended model; those of ``config`` where the extension changes nothing.

    Args:
        config: the language model's config (of a composite model: ``text_config``).
        extension: from ``prepare``.
    """
    if extension.factors is None:
        return dict(config.rope_parameters)
    factors = extension.factors.tolist()
    kept = {
        key: config.rope_parameters[key]
        for key in ("rope_theta", "partial_rotary_factor")
        if key in config.rope_parameters
    }
    return kept | {
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": factors,
        "factor": extension.scale,
        "attention_factor": extension.attention_scaling,
        "original_max_position_embeddings": config.max_position_embeddings,
    }


def save_extended(model: nn.Module, folder: str | Path, extension: Extension) -> None:
    """``model.save_pretrained(folder)`` with the extension in the saved config; the model itself stays as it is.

    ``max_position_embeddings`` becomes the longest sequence of the extended model.

    Raises:
        UserError: the folder holds a config already, or the model is a wrapper whose own format has no config (peft).
    """
    if not isinstance(model, PreTrainedModel):
        raise UserError(
            f"{type(model).__name__} is not a transformers model, so its saved folder would lack the extension; "
            "merge the adapter first (merge_and_unload) or pass the model inside"
        )
    if (Path(folder) / "config.json").exists():
        raise UserError(f"{folder} holds a model already; choose another folder for the extended one")
    config = find_rotary(model).module.config
    with _config_of(config, extension):
        model.save_pretrained(folder)


@contextmanager
def _config_of(config: Any, extension: Extension) -> Iterator[None]:
    before = config.rope_parameters, config.max_position_embeddings
    longest = max(config.max_position_embeddings, extension.extent.language_tokens)
    parameters = longrope_parameters(config, extension)
    try:
        config.rope_parameters, config.max_position_embeddings = parameters, longest
        yield
    finally:
        config.rope_parameters, config.max_position_embeddings = before

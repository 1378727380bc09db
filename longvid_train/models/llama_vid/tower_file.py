"""The vision tower of a saved LLaMA-VID, without the rest: loading it alone, and what tells one tower from another."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from longvid_train.errors import UserError
from longvid_train.models.llama_vid.configuration import CLIP_MODEL_TYPE, LlamaVidConfig
from longvid_train.models.llama_vid.loading import read_model_type
from longvid_train.models.llama_vid.vision_tower import VisionTower, build_vision_tower

_PREFIX = "vision_tower."
_SHAPING = ("model_type", "num_attention_heads", "hidden_act", "layer_norm_eps", "patch_size")
"""Fields of ``vision_config`` that decide the output and are not told by the weights' names and shapes."""


def read_config(folder: Path) -> LlamaVidConfig:
    """Read a LLaMA-VID folder's configuration.

    Raises:
        UserError: the folder holds none.
    """
    read_model_type(folder, LlamaVidConfig.model_type)
    return LlamaVidConfig.from_pretrained(folder, local_files_only=True)


def load_vision_tower(folder: Path) -> VisionTower:
    """Load the tower alone, in float32 and eval mode: of a 13B model, 4 GB instead of 52.

    Raises:
        UserError: the folder's weights are missing, left over or misshapen.
    """
    tower = build_vision_tower(read_config(folder))
    with _readable(folder):
        weights = {name: value.float() for name, value in _weights(folder)}
    wanted = {name: value.shape for name, value in tower.state_dict().items()}
    for name in sorted(wanted.keys() | weights.keys()):
        if name not in weights or name not in wanted or weights[name].shape != wanted[name]:
            raise UserError(
                f"{folder}: weight '{_PREFIX}{name}' does not fit config.json; its tower and configuration do not "
                "belong together"
            )
    tower.load_state_dict(weights, strict=True)
    return tower.requires_grad_(False).eval()


def tower_sha256(folder: Path) -> str:
    """SHA-256 over all values of the tower's weights and over what of the configuration decides its output.

    Values count, not their type in the file: a float16 checkpoint and the float32 one that training wrote from it have
    the same tower.

    Raises:
        UserError: the folder holds no LLaMA-VID checkpoint.
    """
    config = read_config(folder)
    vision = config.vision_config.to_dict()
    facts: dict[str, Any] = {name: vision[name] for name in _SHAPING}
    facts["image_size"] = config.image_size
    if vision["model_type"] == CLIP_MODEL_TYPE:
        facts["select_layer"] = config.vision_select_layer
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    with _readable(folder):
        for name, value in _weights(folder):
            digest.update(json.dumps([name, list(value.shape)]).encode())
            digest.update(value.float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _weights(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tower's weights by name, one at a time from memory-mapped files."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder}: no *.safetensors weights; name a complete LLaMA-VID checkpoint")
    place = {}
    for file in files:
        with safe_open(file, framework="pt", device="cpu") as stream:
            place.update({name: file for name in stream.keys() if name.startswith(_PREFIX)})  # noqa: SIM118
    for name, file in sorted(place.items()):
        with safe_open(file, framework="pt", device="cpu") as stream:
            yield name.removeprefix(_PREFIX), stream.get_tensor(name)


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}: its weights cannot be read ({error}); save the model again") from error

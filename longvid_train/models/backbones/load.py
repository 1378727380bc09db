"""Reading a backbone from a folder or the hub: the checkpoint's own class, chosen exactly.

The class named in ``architectures`` decides; ``model_type`` only where none is named. (Early revisions of
LLaVA-NeXT-Video say ``llava_next`` and the architecture LlavaNextVideoForConditionalGeneration.)
"""

import re
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from longvid_train.errors import UserError, nearest
from longvid_train.models.backbones.llama_vid import LlamaVid
from longvid_train.models.backbones.llava_interleave import LlavaInterleave
from longvid_train.models.backbones.llava_next import LlavaNext
from longvid_train.models.backbones.llava_next_video import LlavaNextVideo
from longvid_train.models.backbones.llava_onevision import LlavaOnevision
from longvid_train.models.backbones.protocol import BackboneFacts
from longvid_train.models.backbones.video_llava import VideoLlava
from longvid_train.models.backbones.video_llava_joint import VideoLlavaJoint
from longvid_train.models.llama_vid.loading import load_whole, read_model_type

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")

AnyBackbone = LlavaOnevision | LlavaNextVideo | VideoLlava | VideoLlavaJoint | LlavaInterleave | LlavaNext | LlamaVid

BACKBONES: dict[str, type[AnyBackbone]] = {
    kind.model_class.__name__: kind
    for kind in (LlavaOnevision, LlavaNextVideo, VideoLlava, VideoLlavaJoint, LlavaInterleave, LlavaNext, LlamaVid)
}
"""By the name of transformers' class."""

MODEL_TYPES: dict[str, type[AnyBackbone]] = {
    kind.model_class.config_class.model_type: kind for kind in BACKBONES.values()
}


def load_backbone(
    source: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device_map: str | dict[str, Any] | None = None,
    attn_implementation: str | None = None,
) -> AnyBackbone:
    """Load a checkpoint with transformers' own class, in eval mode.

    Args:
        source: a folder written by ``save_pretrained``, or a hub id (``str``).
        dtype: of the weights in memory; ``"auto"`` keeps the checkpoint's.
        device_map: transformers' ``device_map``.
        attn_implementation: transformers' attention function for every part.

    Raises:
        UserError: no such checkpoint, another architecture, a configuration that the family does not have (before
            weights are read), or weights that do not fit.
    """
    kind, config = read_config(source)
    kind.facts_of(config)
    model = load_whole(
        kind.model_class,
        _place(source),
        config=config,
        dtype=dtype,
        device_map=device_map,
        attn_implementation=attn_implementation,
    )
    return kind(model)


def read_facts(source: str | Path) -> BackboneFacts:
    """What a checkpoint's configuration says; no weights are read.

    Raises:
        UserError: as `load_backbone`, of the configuration.
    """
    kind, config = read_config(source)
    return kind.facts_of(config)


def backbone_skeleton(config: Any) -> AnyBackbone:
    """Build a configuration's model on torch's meta device: shapes, no memory.

    Raises:
        UserError: no backbone has this configuration.
    """
    kind = _kind(config.to_dict(), "the configuration")
    kind.facts_of(config)
    with torch.device("meta"):
        return kind(kind.model_class(config).eval())


def read_config(source: str | Path) -> tuple[type[AnyBackbone], Any]:
    """The backbone of a checkpoint and its configuration.

    Raises:
        UserError: no such checkpoint, or none of `BACKBONES`.
    """
    place = _place(source)
    if isinstance(place, Path):
        read_model_type(place, *MODEL_TYPES)
    try:
        values, _ = PreTrainedConfig.get_config_dict(place, local_files_only=isinstance(place, Path))
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{source}: no such folder, and no such model on the hub ({reason}); check the name") from error
    kind = _kind(values, str(source))
    return kind, kind.model_class.config_class.from_dict(values)


def _kind(values: dict[str, Any], source: str) -> type[AnyBackbone]:
    architectures = values.get("architectures") or []
    if len(architectures) > 1:
        raise UserError(f"{source} names {len(architectures)} architectures ({', '.join(architectures)}); keep one")
    known = BACKBONES if architectures else MODEL_TYPES
    name = str(architectures[0] if architectures else values.get("model_type"))
    if name not in known:
        hint = nearest(name, list(known)) or "."
        raise UserError(f"{source} holds a '{name}', which is no backbone{hint} Backbones: {', '.join(known)}")
    return known[name]


def _place(source: str | Path) -> str | Path:
    """A hub id is ``owner/name`` where there is no folder ``owner``; everything else is a path."""
    path = Path(source)
    is_id = isinstance(source, str) and HUB_ID.fullmatch(source) and not path.parent.is_dir()
    return source if is_id else path

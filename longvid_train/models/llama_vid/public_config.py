"""A ``LlamaVidConfig`` from the public ``config.json`` and the shapes of the public weights.

The public code hard-codes what neither says (depths, head widths): the constants below. Widths come from the tensors.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from transformers import BertConfig, CLIPVisionConfig, InstructBlipQFormerConfig, InstructBlipVisionConfig, LlamaConfig

from longvid_train.errors import UserError
from longvid_train.models.llama_vid.public_weights import StoredTensor
from longvid_train.types import ALL_PATCHES

_IMAGE_SIZES = {"clip-patch14-224": 224, "clip-patch14-336": 336}
_BERT_TYPE = re.compile(r"raw_bert_layer:(\d+)")
_GRID = re.compile(r"grid:(\d+)")
_LLAMA_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
_LLAMA_REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps")


EVA_LAYERS = 39
"""Blocks of EVA-CLIP ViT-g that run: the output of the last of the file's 40 is not read."""

EVA_HEAD_WIDTH = 88
CLIP_LAYERS = 24
CLIP_HEAD_WIDTH = 64

DECODER_LAYERS = 12
"""Layers of the Q-Former (BERT-base)."""

DECODER_HEAD_WIDTH = 64
"""Channels of a head of the Q-Former and of BERT."""

Shapes = Mapping[str, StoredTensor]


def read_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json`` of a public folder.

    Raises:
        UserError: it is missing or not a JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist; download the whole folder, config.json included")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); download it again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a JSON object; download it again")
    return values


def llama_config(values: Mapping[str, Any], vocab_size: int, where: Path) -> LlamaConfig:
    """The language model's configuration; a public linear ``rope_scaling`` also widens the window, as stage 3 does.

    Raises:
        UserError: a number is missing, or another kind of ``rope_scaling``.
    """
    absent = [name for name in _LLAMA_REQUIRED if name not in values]
    if absent:
        raise UserError(f"{where / 'config.json'} lacks {', '.join(absent)}; give the folder of a Llama checkpoint")
    fields = {name: values[name] for name in _LLAMA_FIELDS if values.get(name) is not None}
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(values.get("rope_theta") or 10000.0)}
    scaling = values.get("rope_scaling")
    if scaling:
        kind, factor = scaling.get("type", scaling.get("rope_type")), scaling.get("factor")
        if kind != "linear" or not isinstance(factor, int | float) or factor < 1:
            raise UserError(
                f"{where / 'config.json'}: rope_scaling is {scaling}; only {{'type': 'linear', 'factor': f}}, f >= 1, "
                "can be converted"
            )
        rope |= {"rope_type": "linear", "factor": float(factor)}
        fields["max_position_embeddings"] = round(fields.get("max_position_embeddings", 2048) * factor)
    return LlamaConfig(vocab_size=vocab_size, rope_parameters=rope, **fields)


def eva_config(tower: Shapes, prefix: str) -> InstructBlipVisionConfig:
    """EVA-CLIP's configuration from the tensors of its public layout."""
    width = _size(tower, f"{prefix}cls_token", 2)
    patch = _size(tower, f"{prefix}patch_embed.proj.weight", 2)
    return InstructBlipVisionConfig(
        hidden_size=width,
        intermediate_size=_size(tower, f"{prefix}blocks.0.mlp.fc1.weight", 0),
        num_hidden_layers=EVA_LAYERS,
        num_attention_heads=_heads(width, EVA_HEAD_WIDTH, "EVA tower"),
        image_size=patch * _grid(_size(tower, f"{prefix}pos_embed", 1), f"{prefix}pos_embed"),
        patch_size=patch,
        layer_norm_eps=1e-6,
        hidden_act="gelu",
        qkv_bias=True,
    )


def clip_config(tower: Shapes, prefix: str) -> CLIPVisionConfig:
    """CLIP's configuration from the tensors of transformers' layout."""
    vision = f"{prefix}vision_model."
    width = _size(tower, f"{vision}embeddings.class_embedding", 0)
    patch = _size(tower, f"{vision}embeddings.patch_embedding.weight", 2)
    positions = f"{vision}embeddings.position_embedding.weight"
    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=_size(tower, f"{vision}encoder.layers.0.mlp.fc1.weight", 0),
        num_hidden_layers=CLIP_LAYERS,
        num_attention_heads=_heads(width, CLIP_HEAD_WIDTH, "CLIP tower"),
        image_size=patch * _grid(_size(tower, positions, 0), positions),
        patch_size=patch,
    )


def qformer_config(tensors: Shapes, encoder: str) -> InstructBlipQFormerConfig:
    """The Q-Former's configuration from the tensors under ``encoder`` (a public name)."""
    bert = f"{encoder}.bert."
    width = _size(tensors, f"{bert}embeddings.word_embeddings.weight", 1)
    return InstructBlipQFormerConfig(
        vocab_size=_size(tensors, f"{bert}embeddings.word_embeddings.weight", 0),
        hidden_size=width,
        num_hidden_layers=DECODER_LAYERS,
        num_attention_heads=_heads(width, DECODER_HEAD_WIDTH, "Q-Former"),
        intermediate_size=_size(tensors, f"{bert}encoder.layer.0.intermediate.dense.weight", 0),
        max_position_embeddings=_size(tensors, f"{bert}embeddings.position_embeddings.weight", 0),
        encoder_hidden_size=_size(tensors, f"{bert}encoder.layer.0.crossattention.self.key.weight", 1),
        cross_attention_frequency=2,
    )


def bert_config(tensors: Shapes, values: Mapping[str, Any], where: Path) -> BertConfig:
    """The light decoder's configuration from its tensors and the public ``bert_type``.

    Raises:
        UserError: ``bert_type`` is not ``raw_bert_layer:N``.
    """
    kind = _BERT_TYPE.fullmatch(str(values.get("bert_type")))
    if kind is None:
        raise UserError(
            f"{where / 'config.json'}: bert_type is {values.get('bert_type')!r}, but the weights hold a BERT without "
            "queries; it must be 'raw_bert_layer:N'"
        )
    bert = "model.vlm_att_encoder.bert."
    width = _size(tensors, f"{bert}embeddings.word_embeddings.weight", 1)
    return BertConfig(
        vocab_size=_size(tensors, f"{bert}embeddings.word_embeddings.weight", 0),
        hidden_size=width,
        num_hidden_layers=int(kind.group(1)),
        num_attention_heads=_heads(width, DECODER_HEAD_WIDTH, "BERT"),
        intermediate_size=_size(tensors, f"{bert}encoder.layer.0.intermediate.dense.weight", 0),
        max_position_embeddings=_size(tensors, f"{bert}embeddings.position_embeddings.weight", 0),
        is_decoder=True,
        add_cross_attention=True,
    )


def content_grid(values: Mapping[str, Any], where: Path) -> int:
    """Content tokens by the public ``compress_type``: ``mean`` -> 1, ``grid:n`` -> n, absent -> every patch.

    Raises:
        UserError: another value.
    """
    kind = values.get("compress_type")
    if kind is None:
        return ALL_PATCHES
    grid = _GRID.fullmatch(str(kind))
    if kind != "mean" and grid is None:
        raise UserError(
            f"{where / 'config.json'}: compress_type is {kind!r}; it must be 'mean', 'grid:n' or absent (every patch)"
        )
    return 1 if grid is None else int(grid.group(1))


def stated_image_size(values: Mapping[str, Any]) -> int | None:
    """The picture size that the public ``image_processor`` path names, if it is one of the two public folders."""
    processor = values.get("image_processor")
    return _IMAGE_SIZES.get(PurePosixPath(processor).name) if isinstance(processor, str) else None


def _size(tensors: Shapes, name: str, axis: int) -> int:
    if name not in tensors:
        raise UserError(
            f"the weights lack '{name}', from which a width is read; they are not whole, or of another layout"
        )
    shape = tensors[name].shape
    if axis >= len(shape):
        raise UserError(f"{tensors[name].file}: '{name}' has shape {shape}; it is of another layout")
    return shape[axis]


def _heads(width: int, head_width: int, what: str) -> int:
    if width % head_width:
        raise UserError(f"the {what} is {width} wide, not a multiple of its heads' {head_width} channels")
    return width // head_width


def _grid(positions: int, name: str) -> int:
    side = round((positions - 1) ** 0.5)
    if side * side + 1 != positions:
        raise UserError(f"'{name}' has {positions} positions; a square of patches and a CLS token would be n * n + 1")
    return side

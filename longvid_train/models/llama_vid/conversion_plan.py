"""Public weights to a LLaMA-VID folder of this project: every tensor accounted for, one output shard in memory.

Sources (see docs/public_checkpoints.md):

- *checkpoint*: the folder of a whole public model, or of a stage-1 one (``mm_projector.bin``);
- *language*: the folder of a Llama checkpoint (Vicuna), for a stage-1 or a fresh model;
- *tower*: EVA-CLIP's ``eva_vit_g.pth`` or the folder of OpenAI's CLIP, likewise;
- *qformer*: LAVIS' ``instruct_blip_vicuna7b_trimmed.pth``, for a fresh model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from longvid_train.errors import UserError
from longvid_train.models.llama_vid.configuration import BERT_MODEL_TYPE, LlamaVidConfig, selected_layer_count
from longvid_train.models.llama_vid.modeling import LlamaVidForConditionalGeneration
from longvid_train.models.llama_vid.public_config import (
    bert_config,
    clip_config,
    content_grid,
    eva_config,
    llama_config,
    qformer_config,
    read_config,
    stated_image_size,
)
from longvid_train.models.llama_vid.public_names import (
    BERT_RULES,
    INSTRUCTBLIP_RULES,
    LANGUAGE_RULES,
    PROJECTOR_RULES,
    QFORMER_RULES,
    Rule,
    Slot,
    clip_rules,
    compact,
    eva_rules,
    place,
)
from longvid_train.models.llama_vid.public_weights import StoredTensor, WeightReader

TOWER_PREFIX = "model.vision_tower.vision_tower."
POSITIONS = ("vision_tower.embeddings.position_embedding", "vision_tower.embeddings.position_embedding.weight")
FRESH_PARTS = ("context_attention", "content_projector", "text_decoder.vision_projector")
MAX_SHARD_BYTES = 2 * 1024**3

_LANGUAGE_KEY = "model.embed_tokens.weight"
_QUERY_KEY = "model.vlm_att_query"
_EVA_KEY = "cls_token"
_CLIP_KEY = "vision_model.embeddings.class_embedding"


@dataclass(frozen=True, kw_only=True)
class PublicSources:
    """Where the weights come from (see the top of this file); what a source does not hold another must."""

    checkpoint: Path | None = None
    language: Path | None = None
    tower: Path | None = None
    qformer: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ConversionOptions:
    """How to convert.

    Attributes:
        image_size: pixels a side; ``None``: what the checkpoint's ``image_processor`` names, else the tower's own.
        dtype: of the written weights; ``None`` keeps each tensor's own, so that nothing is rounded.
        seed: of the parts that no source has.
        max_shard_bytes: largest output file, and with it the memory that is needed.
    """

    image_size: int | None = None
    dtype: torch.dtype | None = None
    seed: int = 0
    max_shard_bytes: int = MAX_SHARD_BYTES


@dataclass(frozen=True, kw_only=True)
class ConversionPlan:
    """What will be written, checked before any weight is read.

    Attributes:
        config: the model's configuration.
        content_grid: content tokens a frame was trained with (``ALL_PATCHES`` or ``n``).
        template: chat template it was trained with.
        parts: source tensors of every copied parameter, by the slot they fill.
        shapes: shape of every parameter.
        fresh: parameters drawn anew, because no source has them.
        left_behind: public names that the model has no use for, each known.
        tokenizer_folder: folder of the language model's tokenizer.
    """

    config: LlamaVidConfig
    content_grid: int
    template: str
    parts: Mapping[str, Mapping[Slot, StoredTensor]]
    shapes: Mapping[str, tuple[int, ...]]
    fresh: tuple[str, ...]
    left_behind: tuple[str, ...]
    tokenizer_folder: Path


def plan_conversion(sources: PublicSources, options: ConversionOptions, reader: WeightReader) -> ConversionPlan:
    """Work out the configuration and where every tensor goes; nothing is written and no values are read.

    Raises:
        UserError: a source is missing or unreadable, or its keys or shapes are not exactly those of the model.
    """
    found = _Inventories(sources, reader)
    config, values = _config(found, options)
    with torch.device("meta"):
        shapes = {
            name: tuple(value.shape) for name, value in LlamaVidForConditionalGeneration(config).state_dict().items()
        }
    rules = _rules(found, config)
    parts, left_behind = _place_all(found, rules)
    fresh = _check_keys(found, parts, shapes)
    _check_shapes(found, parts, shapes)
    return ConversionPlan(
        config=config,
        content_grid=1 if sources.checkpoint is None else content_grid(values, _folder(sources.checkpoint)),
        template="vicuna_v1" if sources.language is None else "plain",
        parts=parts,
        shapes=shapes,
        fresh=fresh,
        left_behind=left_behind,
        tokenizer_folder=found.language_folder,
    )


class _Inventories:
    """The tensors of every source, and which of them hold what."""

    def __init__(self, sources: PublicSources, reader: WeightReader) -> None:
        self.by_source: dict[Path, dict[str, StoredTensor]] = {}
        for source in (sources.checkpoint, sources.language, sources.tower, sources.qformer):
            if source is not None:
                self.by_source[source] = reader.inventory(source)
        self.sources = sources
        self.checkpoint = {} if sources.checkpoint is None else self.by_source[sources.checkpoint]
        self._check_checkpoint()
        language = self._holder(_LANGUAGE_KEY, sources.language, "language model", "--language with a Llama folder")
        self.language, self.language_folder = self.by_source[language], _folder(language)
        self.tower_prefix, tower = self._tower()
        self.tower = self.by_source[tower]
        if sources.checkpoint is None and sources.qformer is None:
            raise UserError("no text decoder: give --checkpoint, or --qformer with InstructBLIP's trimmed .pth file")
        if sources.checkpoint is not None and sources.qformer is not None:
            raise UserError(f"{sources.qformer}: {sources.checkpoint} has its own text decoder; leave --qformer out")

    def _check_checkpoint(self) -> None:
        if self.sources.checkpoint is not None and not any(
            name.startswith("model.vlm_att_") for name in self.checkpoint
        ):
            raise UserError(
                f"{self.sources.checkpoint}: no key starts with 'model.vlm_att_', as in every LLaMA-VID checkpoint; "
                "it is another model (a plain LLaVA or Vicuna?)"
            )

    def _holder(self, key: str, extra: Path | None, what: str, remedy: str) -> Path:
        """The one source, of the checkpoint and ``extra``, that has ``key``."""
        mine = self.sources.checkpoint if key in self.checkpoint else None
        if mine is not None and extra is not None:
            raise UserError(f"{extra}: {mine} has its own {what}; leave the second one out")
        holder = mine or extra
        if holder is None or key not in self.by_source[holder]:
            raise UserError(f"{holder or self.sources.checkpoint or 'the sources'}: no {what} ('{key}'); give {remedy}")
        return holder

    def _tower(self) -> tuple[str, Path]:
        """Prefix of the tower's names and the source that holds it."""
        clip = f"{TOWER_PREFIX}{_CLIP_KEY}" in self.checkpoint
        if clip or f"{TOWER_PREFIX}{_EVA_KEY}" in self.checkpoint:
            key = TOWER_PREFIX + (_CLIP_KEY if clip else _EVA_KEY)
            return TOWER_PREFIX, self._holder(key, self.sources.tower, "vision tower", "")
        key = _EVA_KEY
        if self.sources.tower is not None and _CLIP_KEY in self.by_source[self.sources.tower]:
            key = _CLIP_KEY
        return "", self._holder(key, self.sources.tower, "vision tower", "--tower with eva_vit_g.pth or a CLIP folder")

    @property
    def clip(self) -> bool:
        """Whether the tower is CLIP, not EVA-CLIP."""
        return f"{self.tower_prefix}{_CLIP_KEY}" in self.tower


def _folder(source: Path) -> Path:
    return source if source.is_dir() else source.parent


def _config(found: _Inventories, options: ConversionOptions) -> tuple[LlamaVidConfig, dict[str, Any]]:
    """The model's configuration and the public checkpoint's own values (none without a checkpoint)."""
    sources = found.sources
    values = {} if sources.checkpoint is None else read_config(_folder(sources.checkpoint))
    language = read_config(found.language_folder)
    vision = (clip_config if found.clip else eva_config)(found.tower, found.tower_prefix)
    decoder: Any
    if sources.qformer is not None:
        decoder = qformer_config(found.by_source[sources.qformer], "Qformer")
        queries = found.by_source[sources.qformer]["query_tokens"].shape[1]
    elif _QUERY_KEY in found.checkpoint:
        decoder = qformer_config(found.checkpoint, "model.vlm_att_encoder")
        queries = found.checkpoint[_QUERY_KEY].shape[1]
    else:
        decoder = bert_config(found.checkpoint, values, _folder(sources.checkpoint or Path()))
        queries = 32
    image_size = options.image_size or stated_image_size(values) or vision.image_size
    if image_size % vision.patch_size:
        raise UserError(f"image size {image_size} is not a multiple of the patch size {vision.patch_size}")
    vision.image_size = image_size  # the positions are resized to it
    vocab_size = found.language[_LANGUAGE_KEY].shape[0]
    text = llama_config(language, vocab_size, found.language_folder)
    config = LlamaVidConfig(
        vision_config=vision,
        text_decoder_config=decoder,
        text_config=text,
        num_queries=queries,
        visual_token_id=vocab_size,
        vision_select_layer=int(values.get("mm_vision_select_layer", -2)),
        max_prompt_tokens=min(256, decoder.max_position_embeddings),
    )
    return config, values


def _rules(found: _Inventories, config: LlamaVidConfig) -> dict[Path, tuple[Rule, ...]]:
    """The rules by which each source is read."""
    vision = config.vision_config
    layers = vision.num_hidden_layers
    if found.clip:
        layers = selected_layer_count(layers, config.vision_select_layer)
    tower = (clip_rules if found.clip else eva_rules)(found.tower_prefix.replace(".", r"\."), layers)
    sources = found.sources
    rules: dict[Path, tuple[Rule, ...]] = {}
    if sources.checkpoint is not None:
        bert = config.text_decoder_config.model_type == BERT_MODEL_TYPE
        rules[sources.checkpoint] = (*PROJECTOR_RULES, *(BERT_RULES if bert else QFORMER_RULES), *LANGUAGE_RULES)
        if found.tower_prefix:
            rules[sources.checkpoint] += tower
    if sources.language is not None:
        rules[sources.language] = LANGUAGE_RULES
    if sources.tower is not None:
        rules[sources.tower] = tower
    if sources.qformer is not None:
        rules[sources.qformer] = INSTRUCTBLIP_RULES
    return rules


def _place_all(
    found: _Inventories, rules: Mapping[Path, Sequence[Rule]]
) -> tuple[dict[str, dict[Slot, StoredTensor]], tuple[str, ...]]:
    """Give every stored tensor its place.

    Raises:
        UserError: names that no rule knows, all of them listed.
    """
    parts: dict[str, dict[Slot, StoredTensor]] = {}
    left_behind: list[str] = []
    for source, tensors in found.by_source.items():
        unexpected = []
        for name, stored in tensors.items():
            where = place(name, rules[source])
            if where is None:
                unexpected.append(name)
            elif where.name is None:
                left_behind.append(name)
            else:
                parts.setdefault(where.name, {})[where.slot] = stored
        if unexpected:
            raise UserError(
                f"{source}: {len(unexpected)} unexpected keys, none of which LLaMA-VID has: {compact(unexpected)}; "
                "it is not the checkpoint it should be, or newer than this converter"
            )
    return parts, tuple(left_behind)


def _check_keys(
    found: _Inventories, parts: Mapping[str, Mapping[Slot, StoredTensor]], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[str, ...]:
    """Refuse parameters without a source; return those that may be fresh.

    Raises:
        UserError: listing all that are missing, or that the sources have beyond the model.
    """
    incomplete = [name for name, slots in parts.items() if "whole" not in slots and len(slots) < 2]
    absent = [name for name in shapes if name not in parts]
    without_checkpoint = found.sources.checkpoint is None
    fresh = [name for name in absent if without_checkpoint and name.startswith(FRESH_PARTS)]
    missing = [name for name in (*absent, *incomplete) if name not in fresh]
    if missing:
        raise UserError(
            f"{', '.join(str(source) for source in found.by_source)}: {len(missing)} weights are missing (names here): "
            f"{compact(missing)}; download the whole checkpoint"
        )
    beyond = [name for name in parts if name not in shapes]
    if beyond:
        raise UserError(
            f"{', '.join(str(source) for source in found.by_source)}: {len(beyond)} weights beyond what config.json "
            f"describes (names here): {compact(beyond)}; weights and config.json do not belong together"
        )
    return tuple(fresh)


def _check_shapes(
    found: _Inventories, parts: Mapping[str, Mapping[Slot, StoredTensor]], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse tensors of another shape, naming the first and what size of model is expected.

    Raises:
        UserError: a shape differs, or a weight is not floating point.
    """
    wrong: list[str] = []
    for name, slots in parts.items():
        for slot, stored in slots.items():
            if not stored.dtype.is_floating_point:
                raise UserError(f"{stored.file}: '{stored.name}' is {stored.dtype}; weights must be floating point")
            if name in POSITIONS:  # resized on the way
                expected = (*shapes[name][:-2], stored.shape[-2], shapes[name][-1])
            else:
                expected = shapes[name] if slot == "whole" else (shapes[name][0] // 3,)
            if stored.shape != expected:
                wrong.append(f"{stored.file.name}: '{stored.name}' is {stored.shape}, not {expected}")
    if wrong:
        embedding = found.language[_LANGUAGE_KEY]
        raise UserError(
            f"{len(wrong)} weights are of another size than this model, whose language model ({found.language_folder}) "
            f"is {embedding.shape[1]} wide: {'; '.join(wrong[:8])}{'; ...' if len(wrong) > 8 else ''}; give parts of "
            "one size (4096 wide: 7B, 5120 wide: 13B)"
        )

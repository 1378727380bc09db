"""Building a LLaMA-VID from separately pretrained parts, as the paper does (EVA-CLIP, InstructBLIP's Q-Former, Vicuna).

A tower and a language model are folders of transformers' ``save_pretrained``; a text decoder is a folder written
by ``save_text_decoder``: ``text_decoder.json`` (class, widths, configuration) and ``text_decoder.safetensors``.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, BertConfig, InstructBlipQFormerConfig, LlamaForCausalLM

from longvid_train.errors import UserError
from longvid_train.files import atomic_path, write_json
from longvid_train.models.llama_vid.configuration import (
    BERT_MODEL_TYPE,
    CLIP_MODEL_TYPE,
    EVA_MODEL_TYPE,
    LANGUAGE_MODEL_TYPE,
    QFORMER_MODEL_TYPE,
    LlamaVidConfig,
)
from longvid_train.models.llama_vid.context_attention import ContextAttention
from longvid_train.models.llama_vid.head import build_content_projector
from longvid_train.models.llama_vid.loading import load_whole, read_model_type
from longvid_train.models.llama_vid.modeling import LlamaVidForConditionalGeneration
from longvid_train.models.llama_vid.text_decoder_bert import BertTextDecoder
from longvid_train.models.llama_vid.text_decoder_qformer import QFormerTextDecoder
from longvid_train.models.llama_vid.vision_tower import (
    ClipVisionTower,
    EvaVisionTower,
    VisionTower,
    resize_tower,
)

DESCRIPTION_FILE = "text_decoder.json"
WEIGHTS_FILE = "text_decoder.safetensors"

TextDecoderModule = QFormerTextDecoder | BertTextDecoder


def build_llama_vid(
    *,
    vision_tower: str | Path | VisionTower,
    language_model: str | Path | LlamaForCausalLM,
    text_decoder: str | Path | TextDecoderModule | BertConfig | InstructBlipQFormerConfig | None,
    visual_token_id: int,
    dtype: torch.dtype = torch.float32,
    vision_select_layer: int = -2,
    num_queries: int = 32,
    **config_fields: Any,
) -> LlamaVidForConditionalGeneration:
    """Put pretrained parts together; the context attention and the content projector are fresh.

    Args:
        vision_tower: folder of an ``InstructBlipVisionModel`` or ``CLIPVisionModel``, or the tower itself.
        language_model: folder of a ``LlamaForCausalLM``, or the model itself.
        text_decoder: folder of ``save_text_decoder``, the module itself, a configuration (fresh weights: the paper's
            2-layer BERT), or ``None`` for content tokens only.
        visual_token_id: placeholder of one visual token in ``input_ids``.
        dtype: of the whole model.
        vision_select_layer: hidden state a CLIP tower gives.
        num_queries: of a fresh Q-Former; a pretrained one has its own number.
        **config_fields: other fields of ``LlamaVidConfig`` (``use_content``, ``image_size``, ...). Another
            ``image_size`` than an EVA tower's own resizes its position embeddings in place; CLIP's are interpolated in
            each forward.

    Returns:
        The model in eval mode.

    Raises:
        UserError: a folder that is not what it should be, or parts whose widths do not fit.
    """
    tower, language = vision_tower, language_model
    if isinstance(tower, str | Path):
        tower = load_tower(Path(tower), vision_select_layer)
    if isinstance(language, str | Path):
        language = load_language_model(Path(language))
    decoder = _text_decoder(text_decoder, tower.config.hidden_size, num_queries)
    config = LlamaVidConfig(
        vision_config=tower.config,
        text_decoder_config=None if decoder is None else decoder.config,
        text_config=language.config,
        num_queries=decoder.queries.shape[1] if isinstance(decoder, QFormerTextDecoder) else num_queries,
        visual_token_id=visual_token_id,
        vision_select_layer=vision_select_layer,
        **config_fields,
    )
    if isinstance(tower, EvaVisionTower) and config.image_size != tower.config.image_size:
        resize_tower(tower, config.image_size)
        config.vision_config.image_size = config.image_size
    # The skeleton holds no memory: a 7B model must not be initialised twice.
    with torch.device("meta"):
        model = LlamaVidForConditionalGeneration(config)
    model.vision_tower, model.language_model, model.text_decoder = tower, language, decoder
    if model.context_attention is not None and decoder is not None:
        attention = ContextAttention(decoder.config.hidden_size, tower.config.hidden_size, language.config.hidden_size)
        model.context_attention = _fresh(model, attention)
    if model.content_projector is not None:
        projector = build_content_projector(tower.config.hidden_size, language.config.hidden_size)
        model.content_projector = _fresh(model, projector)
    model.generation_config = language.generation_config
    return model.to(dtype).eval()


def save_text_decoder(decoder: TextDecoderModule, folder: str | Path) -> None:
    """Write a text decoder, queries, LayerNorm and projection included, into ``folder`` (see the top of this file)."""
    folder = Path(folder)
    with atomic_path(folder / WEIGHTS_FILE) as temporary:
        save_file({name: value.contiguous() for name, value in decoder.state_dict().items()}, temporary)
    description: dict[str, Any] = {"config": decoder.config.to_dict(), "vision_width": decoder.vision_width}
    if isinstance(decoder, QFormerTextDecoder):
        description["num_queries"] = decoder.queries.shape[1]
    write_json(folder / DESCRIPTION_FILE, description)


def load_text_decoder(folder: str | Path) -> TextDecoderModule:
    """Read what ``save_text_decoder`` wrote, in eval mode.

    Raises:
        UserError: a file is missing or broken, or weights that do not fit the description.
    """
    folder = Path(folder)
    for name in (DESCRIPTION_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} does not exist; give a folder written by save_text_decoder")
    try:
        description = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        config = AutoConfig.for_model(**description["config"])
        decoder = fresh_text_decoder(config, description["vision_width"], description.get("num_queries", 0))
        decoder.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{folder} is not a whole text decoder ({type(error).__name__}: {error}); save it again"
        ) from error
    return decoder.eval()


def fresh_text_decoder(
    config: BertConfig | InstructBlipQFormerConfig, vision_width: int, num_queries: int
) -> TextDecoderModule:
    """Build a text decoder with fresh weights; ``num_queries`` matters for a Q-Former only.

    Raises:
        UserError: the configuration is neither a Q-Former's nor a BERT's.
    """
    if config.model_type == QFORMER_MODEL_TYPE:
        return QFormerTextDecoder(config, vision_width=vision_width, num_queries=num_queries)
    if config.model_type == BERT_MODEL_TYPE:
        return BertTextDecoder(config, vision_width=vision_width)
    raise UserError(f"text decoder is a '{config.model_type}'; use '{QFORMER_MODEL_TYPE}' or '{BERT_MODEL_TYPE}'")


def load_tower(folder: Path, select_layer: int = -2) -> VisionTower:
    """Load the tower in a folder of ``save_pretrained``, in eval mode; ``select_layer`` matters for CLIP only.

    Raises:
        UserError: another model, or weights that are missing, left over or misshapen.
    """
    if read_model_type(folder, EVA_MODEL_TYPE, CLIP_MODEL_TYPE) == CLIP_MODEL_TYPE:
        return load_whole(ClipVisionTower, folder, select_layer=select_layer)
    return load_whole(EvaVisionTower, folder)


def load_language_model(source: Path | str) -> LlamaForCausalLM:
    """Load a Llama from a local folder (``Path``) or a hub id (``str``), in eval mode and its own dtype.

    Raises:
        UserError: another model, or weights that are missing, left over or misshapen.
    """
    if isinstance(source, Path):
        read_model_type(source, LANGUAGE_MODEL_TYPE)
    return load_whole(LlamaForCausalLM, source)


def _text_decoder(
    source: str | Path | TextDecoderModule | BertConfig | InstructBlipQFormerConfig | None,
    vision_width: int,
    num_queries: int,
) -> TextDecoderModule | None:
    if source is None:
        return None
    if isinstance(source, str | Path):
        source = load_text_decoder(source)
    if isinstance(source, BertConfig | InstructBlipQFormerConfig):
        return fresh_text_decoder(source, vision_width, num_queries)
    if source.vision_width != vision_width:
        raise UserError(
            f"the text decoder was made for a tower {source.vision_width} wide, this tower is {vision_width} wide; "
            "give parts that were trained together"
        )
    return source


def _fresh(model: LlamaVidForConditionalGeneration, part: nn.Module) -> Any:
    return part.apply(model._init_weights)

"""The shipped variants of nano LLaMA-VID: token types, numbers and text decoders (arXiv:2311.17043, Tables 4 to 6).

Each was trained by ``scripts/train_llama_vid_variants.sh`` from the package's nano parts, on still images: stage 1 in
full, stage 2 with the projections in full and low-rank adapters elsewhere, so that only its adapter ships. The adapter
holds every module whole that is not a pretrained part, so that part and adapter make the trained model again:
the model that stage 2 started from differs from the assembled parts in those modules alone.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoTokenizer

from longvid_train.adaptation.settings import Adaptation
from longvid_train.data.conversation import ConversationOptions
from longvid_train.data.templates import template_by_name
from longvid_train.errors import UserError
from longvid_train.files import sha256_file
from longvid_train.generate.chat import VideoChat
from longvid_train.generate.engine import EngineOptions
from longvid_train.generate.llama_vid_engine import LlamaVidEngine
from longvid_train.generate.llama_vid_prompting import LlamaVidPrompting
from longvid_train.models.adapter import CONFIG_FILE, RECORD_FILE, WEIGHTS_FILE, Adapter, read_adapter
from longvid_train.models.llama_vid import LlamaVidForConditionalGeneration, LlamaVidProcessor, build_llama_vid
from longvid_train.models.lora import apply_adapter, read_shape
from longvid_train.types import ALL_PATCHES

FOLDER = "nano_llama_vid_variants"
PARTS = "nano"
BERT_FILE = "bert.json"
PROVENANCE = "provenance.json"
TEMPLATE = "vicuna_v1"
VISUAL_TOKEN = "<visual>"
FRESH_MODULES = ("context_attention", "content_projector")
PART_FILES = {
    "tower": "tower/model.safetensors",
    "language_model": "language_model/model.safetensors",
    "qformer": "qformer/text_decoder.safetensors",
}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How an image is shown to the language model.

    Attributes:
        name: of its folder.
        words: for people.
        content_grid: content tokens, ``n`` for ``n x n`` or ``ALL_PATCHES``.
        text_decoder: what guides the context token; without one there is none.
        content: whether there are content tokens.
    """

    name: str
    words: str
    content_grid: int = 1
    text_decoder: Literal["qformer", "bert", "none"] = "qformer"
    content: bool = True


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(name="content", words="1 content token (no text guidance)", text_decoder="none"),
        Variant(name="context", words="1 context token", content=False),
        Variant(name="both", words="1 context and 1 content token (Q-Former)"),
        Variant(name="bert", words="1 context (fresh 2-layer BERT) and 1 content token", text_decoder="bert"),
        Variant(name="both_4", words="1 context and 4 content tokens", content_grid=2),
        Variant(name="both_9", words="1 context and 9 content tokens", content_grid=3),
        Variant(name="all", words="1 context and 36 content tokens", content_grid=ALL_PATCHES),
        Variant(name="all_content", words="36 content tokens", content_grid=ALL_PATCHES, text_decoder="none"),
    )
}


def variant_files(models: Path) -> tuple[Path, ...]:
    """Every file that the variants are made of, under the folder of the nano models."""
    own = (WEIGHTS_FILE, CONFIG_FILE, RECORD_FILE, PROVENANCE)
    return (
        *(models / PARTS / part for part in PART_FILES.values()),
        models / FOLDER / BERT_FILE,
        *(models / FOLDER / name / file for name in VARIANTS for file in own),
    )


def load_variant(models: Path, name: str) -> VideoChat:
    """A variant, ready to be asked about frames, each shown as an image was in training; float32 on the CPU.

    Args:
        models: folder of the nano models.
        name: a key of `VARIANTS`.

    Raises:
        UserError: the adapter is broken, belongs to other parts than those under ``models``, or lacks a module that no
            part holds.
    """
    variant, parts = VARIANTS[name], models / PARTS
    adapter = read_adapter(models / FOLDER / name, "llama_vid")
    _check_parts(adapter.folder / PROVENANCE, parts)
    tokenizer = AutoTokenizer.from_pretrained(parts / "tokenizer", local_files_only=True)
    with torch.random.fork_rng(devices=[]):  # fresh modules are drawn, and then read from the adapter
        model = _assembled(variant, models, tokenizer.convert_tokens_to_ids(VISUAL_TOKEN))
        _check_whole(variant, model, adapter)
        model = apply_adapter(model, adapter).merge_and_unload(safe_merge=True)
    prompts = tokenizer if model.config.use_context else None
    prompting = LlamaVidPrompting(
        LlamaVidProcessor.for_model(model.config, tokenizer, prompts),
        model.config,
        template_by_name(TEMPLATE),
        ConversationOptions(image_content_grid=variant.content_grid, video_content_grid=variant.content_grid),
        Adaptation(),
    )
    return VideoChat(LlamaVidEngine(model.eval(), prompting, EngineOptions()), name=name)


def _assembled(variant: Variant, models: Path, visual_token_id: int) -> LlamaVidForConditionalGeneration:
    """The pretrained parts, with fresh modules between them, as ``longvid init`` makes it."""
    parts = models / PARTS
    return build_llama_vid(
        vision_tower=parts / "tower",
        language_model=parts / "language_model",
        text_decoder=_text_decoder(variant, models),
        visual_token_id=visual_token_id,
        use_content=variant.content,
    )


def _check_whole(variant: Variant, model: LlamaVidForConditionalGeneration, adapter: Adapter) -> None:
    """Refuse an adapter that leaves a fresh module as it was drawn."""
    fresh = {module for module in FRESH_MODULES if getattr(model, module) is not None}
    fresh |= {"text_decoder"} if variant.text_decoder == "bert" else set()
    lost = ", ".join(sorted(fresh - set(read_shape(adapter).modules_to_save)))
    if lost:
        raise UserError(f"{adapter.folder} lacks {lost}, which no pretrained part holds; train it again")


def _text_decoder(variant: Variant, models: Path) -> Any:
    if variant.text_decoder == "bert":
        return AutoConfig.for_model(**json.loads((models / FOLDER / BERT_FILE).read_text(encoding="utf-8")))
    return models / PARTS / "qformer" if variant.text_decoder == "qformer" else None


def _check_parts(provenance: Path, parts: Path) -> None:
    """Refuse an adapter whose training began from other parts."""
    recorded = json.loads(provenance.read_text(encoding="utf-8"))["parts"]
    for part, file in PART_FILES.items():
        if sha256_file(parts / file) != recorded[part]:
            raise UserError(
                f"{parts / file} is not the part that {provenance.parent} was trained from; "
                "run scripts/train_llama_vid_variants.sh again"
            )

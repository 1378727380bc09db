"""Configurations of the public checkpoints, to plan and to build without a download.

Sizes are those of the ``config.json`` files under the hub ids given here; Qwen2 tables are counted as Qwen2 has them
(the converted files have a few rows more). ``longvid cost --model`` takes the short names.
"""

from collections.abc import Callable
from typing import Any

from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextVideoConfig,
    LlavaOnevisionConfig,
    Qwen2Config,
    SiglipVisionConfig,
    VideoLlavaConfig,
)

from longvid_train.errors import UserError, nearest


def _siglip() -> Any:
    return SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=26,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
        vision_use_head=False,
    )


def _clip(side: int) -> Any:
    return CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=side,
        patch_size=14,
    )


def _qwen2_7b() -> Any:
    return Qwen2Config(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
        max_position_embeddings=32768,
    )


def _qwen2_05b() -> Any:
    return Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151936,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    )


def _vicuna_7b(**fields: Any) -> Any:
    return LlamaConfig(max_position_embeddings=4096, vocab_size=32064, **fields)


def _yi_34b() -> Any:
    return LlamaConfig(
        hidden_size=7168,
        intermediate_size=20480,
        num_hidden_layers=60,
        num_attention_heads=56,
        num_key_value_heads=8,
        max_position_embeddings=4096,
        vocab_size=64064,
    )


def _interleave(text: Any) -> Any:
    return LlavaConfig(
        vision_config=_siglip(),
        text_config=text,
        image_token_index=151646,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )


_DPO = {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0}}

PUBLISHED: dict[str, Callable[[], Any]] = {
    # llava-hf/llava-onevision-qwen2-{0.5b,7b}-ov-hf
    "llava-onevision-0.5b": lambda: LlavaOnevisionConfig(vision_config=_siglip(), text_config=_qwen2_05b()),
    "llava-onevision-7b": lambda: LlavaOnevisionConfig(vision_config=_siglip(), text_config=_qwen2_7b()),
    # LanguageBind/Video-LLaVA-7B-hf
    "video-llava-7b": lambda: VideoLlavaConfig(vision_config=_clip(224), text_config=_vicuna_7b()),
    # llava-hf/LLaVA-NeXT-Video-{7B,7B-DPO,34B}-hf
    "llava-next-video-7b": lambda: LlavaNextVideoConfig(vision_config=_clip(336), text_config=_vicuna_7b()),
    "llava-next-video-7b-dpo": lambda: LlavaNextVideoConfig(vision_config=_clip(336), text_config=_vicuna_7b(**_DPO)),
    "llava-next-video-34b": lambda: LlavaNextVideoConfig(vision_config=_clip(336), text_config=_yi_34b()),
    # llava-hf/llava-interleave-qwen-{0.5b,7b}-hf
    "llava-interleave-0.5b": lambda: _interleave(_qwen2_05b()),
    "llava-interleave-7b": lambda: _interleave(_qwen2_7b()),
    # llava-hf/llava-v1.6-vicuna-7b-hf
    "llava-1.6-vicuna-7b": lambda: LlavaNextConfig(vision_config=_clip(336), text_config=_vicuna_7b()),
}
"""Short name -> its transformers configuration."""


def published_backbone(name: str) -> Any:
    """The configuration called ``name``.

    Raises:
        UserError: no such name.
    """
    if name not in PUBLISHED:
        hint = nearest(name, list(PUBLISHED)) or "."
        raise UserError(f"'{name}' is no published model{hint} Known: {', '.join(PUBLISHED)}")
    return PUBLISHED[name]()

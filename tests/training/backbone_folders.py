"""Folders of tiny backbones with tokenizer, chat template and processor, as a public checkpoint has them."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    VideoLlavaConfig,
)

from longvid_train.models.backbones.video_llava_joint import (
    JointVideoLlavaConfig,
    JointVideoLlavaForConditionalGeneration,
)
from tests.models import tiny_backbones as tiny

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for part in message['content'] if part['type'] != 'text' %}{{ '<' + part['type'] + '>' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ '\n' + part['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""LLaVA-OneVision's: the answer's turn has a space that the generation prompt has not."""

VICUNA = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] != 'text' %}{{ '<' + part['type'] + '>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""LLaVA-NeXT-Video's: no end token behind earlier answers."""

CONTROLS = ["<pad>", "<s>", "</s>", "<image>", "<video>", "<|im_start|>", "<|im_end|>"]


def byte_tokenizer(*, begins: bool, end: str) -> PreTrainedTokenizerFast:
    """A token a byte, behind the control tokens."""
    inner = Tokenizer(models.BPE(vocab={one: index for index, one in enumerate(_alphabet())}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(CONTROLS)
    if begins:
        start = inner.token_to_id("<s>")
        inner.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", start)])
    bos = {"bos_token": "<s>"} if begins else {}
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=end, pad_token="<pad>", **bos)


def _alphabet() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


PICTURES: dict[str, dict[str, Any]] = {
    "onevision": {"size": {"height": 28, "width": 28}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    "interleave": {"size": {"height": 28, "width": 28}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    "next_video": {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}},
    "joint": {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}},
}


def save_backbone(folder: Path, name: str, *, positions: int = 2048) -> Path:
    """A tiny random model of ``name`` (a key of `PICTURES`) with a vocabulary of bytes."""
    chatml = name in ("onevision", "interleave")
    tokenizer = byte_tokenizer(begins=not chatml, end="<|im_end|>" if chatml else "</s>")
    torch.manual_seed(5)
    model = _build(name, tokenizer, positions)
    with torch.no_grad():  # as initialised, attention is even and positions decide nothing
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    part = "image_processor" if name == "interleave" else "video_processor"
    (folder / "processor_config.json").write_text(json.dumps({part: PICTURES[name]}))
    if chatml:
        (folder / "chat_template.jinja").write_text(CHATML)
    elif name == "next_video":
        (folder / "chat_template.jinja").write_text(VICUNA)
    return folder


def _build(name: str, tokenizer: PreTrainedTokenizerFast, positions: int) -> Any:
    language = tiny.LANGUAGE | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": positions,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    ids = {
        f"{one}_token_index": tokenizer.convert_tokens_to_ids(f"<{one}>")
        for one in (("image",) if name == "interleave" else ("image", "video"))
    }
    if name == "onevision":
        config = LlavaOnevisionConfig(vision_config=tiny.siglip(), text_config=Qwen2Config(**language), **ids)
        return LlavaOnevisionForConditionalGeneration(config)
    if name == "next_video":
        config = LlavaNextVideoConfig(vision_config=tiny.clip(24), text_config=LlamaConfig(**language), **ids)
        return LlavaNextVideoForConditionalGeneration(config)
    if name == "joint":
        plain = VideoLlavaConfig(vision_config=tiny.clip(16), text_config=LlamaConfig(**language), **ids)
        return JointVideoLlavaForConditionalGeneration(JointVideoLlavaConfig(**plain.to_dict(), joint_frames=2))
    config = LlavaConfig(
        vision_config=tiny.siglip(),
        text_config=Qwen2Config(**language),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        **ids,
    )
    return LlavaForConditionalGeneration(config)

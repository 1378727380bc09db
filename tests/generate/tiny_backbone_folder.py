"""Tiny random backbones saved as whole folders: weights, tokenizer, picture settings and chat template."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from longvid_train.models.backbones.video_llava_joint import (
    JointVideoLlavaConfig,
    JointVideoLlavaForConditionalGeneration,
)
from tests.models import tiny_backbones

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] if part['type'] != 'text' %}{{ '<' + part['type'] + '>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIALS = ["<pad>", "<s>", "<|im_end|>", "<|im_start|>", "<image>", "<video>"]
WINDOW = 512
JOINT_FRAMES = 4


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """256 bytes behind the special tokens; ``<|im_end|>`` ends answers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {one: number for number, one in enumerate([*SPECIALS, *alphabet])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(SPECIALS)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<pad>")


def build_named(name: str, **language: Any) -> Any:
    """A random model of ``tiny_backbones`` (or ``joint``) with this file's vocabulary."""
    sizes = {
        **tiny_backbones.LANGUAGE,
        "vocab_size": len(SPECIALS) + 256,
        "max_position_embeddings": WINDOW,
        **language,
    }
    ids = {"image_token_index": SPECIALS.index("<image>"), "video_token_index": SPECIALS.index("<video>")}
    sizes |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    with patch.multiple(tiny_backbones, LANGUAGE=sizes, IDS=ids, IMAGE_ID=ids["image_token_index"]):
        if name != "joint":
            return tiny_backbones.build(name)
        config = JointVideoLlavaConfig(
            vision_config=tiny_backbones.clip(16),
            text_config=tiny_backbones.LlamaConfig(**tiny_backbones.LANGUAGE),
            joint_frames=JOINT_FRAMES,
            **ids,
        )
    torch.manual_seed(3)
    model = JointVideoLlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def save_tiny_backbone(
    folder: Path, name: str = "onevision", *, template: str | None = CHATML, **language: Any
) -> Path:
    """Save model and processor as transformers lays them out."""
    model = build_named(name, **language)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    side = model.config.vision_config.image_size
    pictures = {"size": {"height": side, "width": side}, "do_center_crop": False}
    part = "image_processor" if name in ("interleave", "next_image") else "video_processor"
    (folder / "processor_config.json").write_text(json.dumps({part: pictures}))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder

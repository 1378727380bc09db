"""Tiny random checkpoints of every backbone in transformers' own classes, and what transformers itself computes."""

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

IMAGE_ID, VIDEO_ID, VOCABULARY = 91, 92, 96

TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "patch_size": 4,
}
LANGUAGE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 40,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IDS = {"image_token_index": IMAGE_ID, "video_token_index": VIDEO_ID}


def siglip():
    return SiglipVisionConfig(**TOWER, image_size=28, vision_use_head=False)


def clip(side):
    return CLIPVisionConfig(**TOWER, image_size=side)


def onevision():
    config = LlavaOnevisionConfig(vision_config=siglip(), text_config=Qwen2Config(**LANGUAGE), **IDS)
    return LlavaOnevisionForConditionalGeneration(config)


def next_video(**fields):
    config = LlavaNextVideoConfig(vision_config=clip(24), text_config=LlamaConfig(**LANGUAGE), **IDS, **fields)
    return LlavaNextVideoForConditionalGeneration(config)


def video_llava():
    config = VideoLlavaConfig(vision_config=clip(16), text_config=LlamaConfig(**LANGUAGE), **IDS)
    return VideoLlavaForConditionalGeneration(config)


def interleave():
    config = LlavaConfig(
        vision_config=siglip(),
        text_config=Qwen2Config(**LANGUAGE),
        image_token_index=IMAGE_ID,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return LlavaForConditionalGeneration(config)


def next_image():
    config = LlavaNextConfig(
        vision_config=clip(24),
        text_config=LlamaConfig(**LANGUAGE),
        image_token_index=IMAGE_ID,
        image_grid_pinpoints=[[24, 24]],
    )
    return LlavaNextForConditionalGeneration(config)


BUILDERS = {
    "onevision": onevision,
    "next_video": next_video,
    "video_llava": video_llava,
    "interleave": interleave,
    "next_image": next_image,
}

FRAME_TOKENS = {"onevision": 16, "next_video": 9, "video_llava": 17, "interleave": 49, "next_image": 36}
"""Tokens of a frame without an adaptation: 7 x 7 -> 4 x 4, 6 x 6 -> 3 x 3, 4 x 4 and the class token, 7 x 7, 6 x 6."""

END_TOKENS = {"onevision": 1}


def build(name, **fields):
    torch.manual_seed(3)
    model = BUILDERS[name](**fields).eval()
    with torch.no_grad():  # biases start at 0 and norms at 1: make them count
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def pixels(model, frames, seed=0):
    side = model.config.vision_config.image_size
    return torch.randn(frames, 3, side, side, generator=torch.Generator().manual_seed(seed))


def prompt(name, visual_tokens, rows=1):
    placeholder = VIDEO_ID if name in ("onevision", "next_video", "video_llava") else IMAGE_ID
    return torch.tensor([[1, 7 + row, *[placeholder] * visual_tokens, 12, 13, 14 + row] for row in range(rows)])


def own_inputs(name, model, pixel_values):
    """Keyword arguments of transformers' own ``forward`` and ``generate`` for these frames."""
    if name == "interleave":
        return {"pixel_values": pixel_values}
    if name != "next_image":
        return {"pixel_values_videos": pixel_values[None]}
    # transformers shows an image as its base view and at least one tile: the base view is what a frame is here.
    side = model.config.vision_config.image_size
    views = torch.stack([pixel_values, torch.randn_like(pixel_values)], dim=1)
    sizes = torch.full((len(pixel_values), 2), side)
    whole = model.model.get_image_features(views, sizes).pooler_output
    base = [one[: FRAME_TOKENS[name]] for one in whole]
    return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=base)}}

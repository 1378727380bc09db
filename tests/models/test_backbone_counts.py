"""Token counts, windows and widths at the public checkpoints' configurations, built on the meta device."""

from functools import cache

import pytest
import torch
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

from longvid_train.adaptation.reading import parse_adaptation
from longvid_train.errors import UserError
from longvid_train.models.backbones import backbone_skeleton, video_tokens

SIGLIP = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}


def clip(side):
    return CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=side,
        patch_size=14,
    )


def qwen(**fields):
    large = {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    }
    return Qwen2Config(**(large | {"max_position_embeddings": 32768} | fields))


def vicuna(**fields):
    return LlamaConfig(**({"max_position_embeddings": 4096, "vocab_size": 32064} | fields))


def yi():
    return vicuna(hidden_size=7168, intermediate_size=20480, num_hidden_layers=60, num_attention_heads=56)


def small_qwen():
    return qwen(
        hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2
    )


def interleave(text):
    return LlavaConfig(
        vision_config=SiglipVisionConfig(**SIGLIP),
        text_config=text,
        image_token_index=151646,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )


def onevision(text):
    return LlavaOnevisionConfig(vision_config=SiglipVisionConfig(**SIGLIP), text_config=text)


def next_video(text):
    return LlavaNextVideoConfig(vision_config=clip(336), text_config=text)


DPO = {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0}}

# checkpoint: (configuration, tokens a frame, tokens after the video, visual window, language window, width)
PUBLIC = {
    "onevision-0.5b": (lambda: onevision(small_qwen()), 196, 1, 6272, 32768, 896),
    "onevision-7b": (lambda: onevision(qwen()), 196, 1, 6272, 32768, 3584),
    "video-llava-7b": (
        lambda: VideoLlavaConfig(vision_config=clip(224), text_config=vicuna()),
        257,
        0,
        2056,
        4096,
        4096,
    ),
    "next-video-7b": (lambda: next_video(vicuna()), 144, 0, 4608, 4096, 4096),
    "next-video-7b-dpo": (lambda: next_video(vicuna(**DPO)), 144, 0, 4608, 10240, 4096),
    "next-video-34b": (lambda: next_video(yi()), 144, 0, 4608, 4096, 7168),
    "interleave-0.5b": (lambda: interleave(small_qwen()), 729, 0, None, 32768, 896),
    "interleave-7b": (lambda: interleave(qwen()), 729, 0, None, 32768, 3584),
    "llava-1.6-vicuna": (
        lambda: LlavaNextConfig(vision_config=clip(336), text_config=vicuna()),
        576,
        0,
        2880,
        4096,
        4096,
    ),
}


@cache
def skeleton(name):
    return backbone_skeleton(PUBLIC[name][0]())


def meta_tokens(backbone, plan):
    side = backbone.facts.image_side
    pixel_values = torch.empty(plan.frame_count, 3, side, side, device="meta")
    with torch.no_grad():
        return video_tokens(backbone, pixel_values, plan, frame_chunk=plan.frame_count)  # no memory: at once


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_configurations_make_the_published_counts(name):
    _, a_frame, after, visual, language, width = PUBLIC[name]
    backbone = skeleton(name)
    for frames in (1, 8, 33):
        plan = parse_adaptation("", where="empty").plan_frames(frames, backbone.facts.grid)
        assert plan.visual_tokens == a_frame * frames + after
    assert tuple(meta_tokens(backbone, plan).shape) == (plan.visual_tokens, width)
    assert (backbone.facts.trained.visual, backbone.facts.trained.language) == (visual, language)


@pytest.mark.parametrize(
    ("name", "adaptation", "frames", "count"),
    [
        ("onevision-7b", "plan: {kind: progressive}", 256, 15_617),
        ("onevision-7b", "plan: {kind: uniform, stride: 8}", 256, 4097),
        ("onevision-7b", "plan: {kind: slowfast, fast_stride: 4}", 50, 6231),
        ("interleave-7b", "plan: {kind: uniform, stride: 2}", 32, 6272),
        ("interleave-7b", "plan: {kind: slowfast, fast_stride: 4}", 50, 6230),
        ("next-video-7b", "plan: {kind: slowfast}", 50, 3680),
        ("llava-1.6-vicuna", "plan: {kind: slowfast}", 50, 3680),
        ("llava-1.6-vicuna", "plan: {kind: uniform, stride: 2}", 32, 4608),
        (
            "video-llava-7b",
            "plan: {kind: progressive, group: 4, high_stride: 1, low_stride: 4}",
            64,
            16 * 257 + 48 * 17,
        ),
        ("video-llava-7b", "grouping: rearranged", 64, 64 * 257),
    ],
)
def test_adaptations_make_the_papers_counts(name, adaptation, frames, count):
    backbone = skeleton(name)
    plan = parse_adaptation(adaptation, where="test").plan_frames(frames, backbone.facts.grid)
    assert plan.visual_tokens == count


@pytest.mark.parametrize(
    ("name", "stride", "said"),
    [
        ("next-video-7b", 5, "does not divide the 24 rows"),
        ("video-llava-7b", 3, "does not divide the 16 rows"),
        ("onevision-7b", 28, "use a number from 1 to 27"),
    ],
)
def test_strides_that_do_not_fit_are_refused_from_the_configuration_alone(name, stride, said):
    grid = skeleton(name).facts.grid
    with pytest.raises(UserError, match=said):
        parse_adaptation(f"plan: {{kind: uniform, stride: {stride}}}", where="test").plan_frames(8, grid)

"""Token counts, windows and widths at the public checkpoints' configurations, built on the meta device."""

from functools import cache

import pytest
import torch

from longvid_train.adaptation.reading import parse_adaptation
from longvid_train.errors import UserError
from longvid_train.models.backbones import backbone_skeleton, video_tokens
from longvid_train.models.backbones.published import PUBLISHED, published_backbone

# published name: (tokens a frame, tokens after the video, visual window, language window, width)
PUBLIC = {
    "llava-onevision-0.5b": (196, 1, 6272, 32768, 896),
    "llava-onevision-7b": (196, 1, 6272, 32768, 3584),
    "video-llava-7b": (257, 0, 2056, 4096, 4096),
    "llava-next-video-7b": (144, 0, 4608, 4096, 4096),
    "llava-next-video-7b-dpo": (144, 0, 4608, 10240, 4096),
    "llava-next-video-34b": (144, 0, 4608, 4096, 7168),
    "llava-interleave-0.5b": (729, 0, None, 32768, 896),
    "llava-interleave-7b": (729, 0, None, 32768, 3584),
    "llava-1.6-vicuna-7b": (576, 0, 2880, 4096, 4096),
}


@cache
def skeleton(name):
    return backbone_skeleton(published_backbone(name))


def meta_tokens(backbone, plan):
    side = backbone.facts.image_side
    pixel_values = torch.empty(plan.frame_count, 3, side, side, device="meta")
    with torch.no_grad():
        return video_tokens(backbone, pixel_values, plan, frame_chunk=plan.frame_count)  # no memory: at once


def test_every_published_configuration_has_its_counts_here():
    assert sorted(PUBLIC) == sorted(PUBLISHED)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_public_configurations_make_the_published_counts(name):
    a_frame, after, visual, language, width = PUBLIC[name]
    backbone = skeleton(name)
    for frames in (1, 8, 33):
        plan = parse_adaptation("", where="empty").plan_frames(frames, backbone.facts.grid)
        assert plan.visual_tokens == a_frame * frames + after
    assert tuple(meta_tokens(backbone, plan).shape) == (plan.visual_tokens, width)
    assert (backbone.facts.trained.visual, backbone.facts.trained.language) == (visual, language)


@pytest.mark.parametrize(
    ("name", "adaptation", "frames", "count"),
    [
        ("llava-onevision-7b", "plan: {kind: progressive}", 256, 15_617),
        ("llava-onevision-7b", "plan: {kind: uniform, stride: 8}", 256, 4097),
        ("llava-onevision-7b", "plan: {kind: slowfast, fast_stride: 4}", 50, 6231),
        ("llava-interleave-7b", "plan: {kind: uniform, stride: 2}", 32, 6272),
        ("llava-interleave-7b", "plan: {kind: slowfast, fast_stride: 4}", 50, 6230),
        ("llava-next-video-7b", "plan: {kind: slowfast}", 50, 3680),
        ("llava-1.6-vicuna-7b", "plan: {kind: slowfast}", 50, 3680),
        ("llava-1.6-vicuna-7b", "plan: {kind: uniform, stride: 2}", 32, 4608),
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
        ("llava-next-video-7b", 5, "does not divide the 24 rows"),
        ("video-llava-7b", 3, "does not divide the 16 rows"),
        ("llava-onevision-7b", 28, "use a number from 1 to 27"),
    ],
)
def test_strides_that_do_not_fit_are_refused_from_the_configuration_alone(name, stride, said):
    grid = skeleton(name).facts.grid
    with pytest.raises(UserError, match=said):
        parse_adaptation(f"plan: {{kind: uniform, stride: {stride}}}", where="test").plan_frames(8, grid)

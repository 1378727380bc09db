"""Backbones on pictures of another size: the tower's own interpolation, fewer cells, the same windows."""

import pytest
import torch

from longvid_train.errors import UserError
from longvid_train.models.backbones import video_tokens
from longvid_train.models.backbones.load import BACKBONES
from longvid_train.models.backbones.resized import resized, resized_facts
from longvid_train.tokens.plan import make_plan
from longvid_train.tokens.uniform import UniformPlan
from tests.models import tiny_backbones

SMALL = {
    "onevision": (19, 4),
    "next_video": (16, 4),
    "video_llava": (11, 5),
    "interleave": (19, 16),
    "next_image": (16, 16),
}
"""Two thirds of each side, and the tokens of a frame then: 4 x 4 patches of 4 pixels, or 2 x 2, and a class token."""


def backbone_of(name):
    model = tiny_backbones.build(name)
    return BACKBONES[type(model).__name__](model)


def small_pixels(side, frames=3):
    return torch.randn(frames, 3, side, side, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_smaller_picture_has_fewer_tokens_of_the_same_model(name):
    backbone, (side, tokens) = backbone_of(name), SMALL[name]
    small = resized(backbone, side)
    assert type(small) is type(backbone)
    assert small.model is backbone.model
    assert (small.facts.image_side, small.facts.trained) == (side, backbone.facts.trained)
    assert small.facts.grid.stride == backbone.facts.grid.stride
    plan = make_plan(UniformPlan(), 3, small.facts.grid)
    assert plan.frame_tokens == 3 * tokens < 3 * tiny_backbones.FRAME_TOKENS[name]
    with torch.no_grad():
        made = video_tokens(small, small_pixels(side), plan)
    assert made.shape == (plan.visual_tokens, tiny_backbones.LANGUAGE["hidden_size"])
    assert backbone.facts.image_side > side, "the backbone itself is as it was"


@pytest.mark.parametrize("name", sorted(SMALL))
def test_features_are_those_of_transformers_interpolation(name):
    backbone, (side, _) = backbone_of(name), SMALL[name]
    tower = backbone.model.model.video_tower if name == "video_llava" else backbone.model.model.vision_tower
    layer, left_out = backbone.model.config.vision_feature_layer, int(name in ("next_video", "next_image"))
    with torch.no_grad():
        states = tower(small_pixels(side), output_hidden_states=True, interpolate_pos_encoding=True).hidden_states
        wanted = states[layer][:, left_out:]
        if name != "next_video":  # the others project before pooling
            wanted = backbone.model.model.multi_modal_projector(wanted)
        own = resized(backbone, side).encode(small_pixels(side))
    torch.testing.assert_close(own, wanted)


def test_at_the_full_side_nothing_is_interpolated():
    backbone = backbone_of("onevision")
    with torch.no_grad():
        assert torch.equal(resized(backbone, 28).encode(small_pixels(28)), backbone.encode(small_pixels(28)))


def test_pictures_of_another_size_are_refused():
    backbone = backbone_of("onevision")
    with pytest.raises(UserError, match=r"this model takes \(frames, 3, 19, 19\)"):
        resized(backbone, 19).encode(small_pixels(28))
    with pytest.raises(UserError, match=r"this model takes \(frames, 3, 28, 28\)"):
        backbone.encode(small_pixels(19))


def test_learned_pooling_keeps_its_stride_on_the_small_grid():
    model = tiny_backbones.build("next_video", spatial_pool_mode="conv", spatial_pool_out_channels=32)
    backbone = BACKBONES[type(model).__name__](model)
    plan = make_plan(UniformPlan(), 3, resized_facts(model.config, 16).grid)
    with torch.no_grad():
        assert len(video_tokens(resized(backbone, 16), small_pixels(16), plan)) == 3 * 4


def test_a_grid_that_the_stride_does_not_fit():
    config = tiny_backbones.build("next_video").config
    with pytest.raises(
        UserError, match=r"pictures of 20 pixels a side make 5 x 5 patches .* a multiple of 8 pixels, e.g. 16"
    ):
        resized_facts(config, 20)
    assert config.vision_config.image_size == 24

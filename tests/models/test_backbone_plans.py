"""Every plan on every backbone: the counts of the plan, each cell where the plan's layout says."""

import pytest
import torch
from torch.nn.functional import avg_pool2d, interpolate

from longvid_train.adaptation.reading import parse_adaptation
from longvid_train.errors import UserError
from longvid_train.models.backbones import video_tokens
from longvid_train.models.backbones.load import BACKBONES
from tests.models import tiny_backbones as tiny

PLANS = {
    "uniform": "plan: {kind: uniform, stride: 2}",
    "uneven": "plan: {kind: uniform, stride: [1, 2]}",
    "progressive": "plan: {kind: progressive, group: 3, high_stride: 1, low_stride: 2}",
    "slowfast": "plan: {kind: slowfast, slow_frames: 2, slow_stride: [1, 2], fast_stride: 2}",
    "rearranged": "grouping: rearranged",
}
NAMES = sorted(tiny.BUILDERS)
FRAMES = 7


@pytest.fixture(scope="module", params=NAMES)
def case(request):
    model = tiny.build(request.param)
    return request.param, BACKBONES[type(model).__name__](model), tiny.pixels(model, FRAMES)


def plan_of(backbone, adaptation, frames=FRAMES):
    return parse_adaptation(adaptation, where="test").plan_frames(frames, backbone.facts.grid)


def frame_by_frame(name, model, pixel_values, plan):
    """The tokens of a plan from one frame and one showing at a time, in torch and transformers' own parts."""
    inner, classes = model.model, plan.grid.class_tokens
    tower = inner.video_tower if name == "video_llava" else inner.vision_tower
    rows = []
    for pathway in plan.pathways:
        for shown in pathway.frames:
            states = tower(pixel_values[shown.frame : shown.frame + 1], output_hidden_states=True).hidden_states
            patches = states[model.config.vision_feature_layer]
            if name in ("next_video", "next_image"):
                patches = patches[:, 1:]
            if name != "next_video":
                patches = inner.multi_modal_projector(patches)
            grid = patches[0, classes:].T.reshape(1, -1, plan.grid.rows, plan.grid.columns)
            if name in ("onevision", "interleave"):
                cells = interpolate(grid, (shown.rows, shown.columns), mode="bilinear")
            else:
                cells = avg_pool2d(grid, (plan.grid.rows // shown.rows, plan.grid.columns // shown.columns))
            tokens = torch.cat([patches[0, :classes], cells[0].flatten(1).T])
            rows.append(inner.multi_modal_projector(tokens) if name == "next_video" else tokens)
    if name == "onevision":
        rows.append(inner.image_newline[None])
    return torch.cat(rows)


@pytest.mark.parametrize("plan_name", sorted(PLANS))
@torch.no_grad()
def test_tokens_are_those_of_each_frame_alone_in_the_plans_order(case, plan_name):
    name, backbone, pixel_values = case
    plan = plan_of(backbone, PLANS[plan_name])
    tokens = video_tokens(backbone, pixel_values, plan, frame_chunk=3)
    assert len(tokens) == plan.visual_tokens == len(plan.layout())
    expected = frame_by_frame(name, backbone.model, pixel_values, plan)
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rearranging_changes_no_bit_for_towers_that_see_one_frame(case):
    _, backbone, pixel_values = case
    one, other = (plan_of(backbone, text) for text in ("", PLANS["rearranged"]))
    assert torch.equal(video_tokens(backbone, pixel_values, one), video_tokens(backbone, pixel_values, other))


@torch.no_grad()
def test_tokens_can_be_kept_elsewhere(case):
    _, backbone, pixel_values = case
    plan = plan_of(backbone, "")
    kept = video_tokens(backbone, pixel_values, plan, store_device="meta")
    assert kept.device.type == "meta" and len(kept) == plan.visual_tokens


def test_a_plan_for_another_grid_or_number_of_frames_is_refused(case):
    _, backbone, pixel_values = case
    other = plan_of(BACKBONES["LlavaNextForConditionalGeneration"](tiny.build("next_image")), "")
    if other.grid != backbone.facts.grid:
        with pytest.raises(UserError, match="plan with its grid"):
            video_tokens(backbone, pixel_values, other)
    with pytest.raises(UserError, match="for 6 frames, but 7 are given"):
        video_tokens(backbone, pixel_values, plan_of(backbone, "", frames=6))
    with pytest.raises(UserError, match="frame_chunk is 0"):
        video_tokens(backbone, pixel_values, plan_of(backbone, ""), frame_chunk=0)


def test_frames_of_another_size_are_refused(case):
    _, backbone, pixel_values = case
    with pytest.raises(UserError, match=r"this model takes \(frames, 3, \d+, \d+\): preprocess"):
        video_tokens(backbone, pixel_values[:, :, :-4], plan_of(backbone, ""))


@pytest.mark.parametrize("mode", ["max", "conv"])
@torch.no_grad()
def test_the_other_trained_poolings_of_next_video_are_transformers_own(mode):
    model = tiny.build("next_video", spatial_pool_mode=mode)
    backbone, pixel_values = BACKBONES[type(model).__name__](model), tiny.pixels(model, 3)
    tokens = video_tokens(backbone, pixel_values, plan_of(backbone, "", frames=3))
    own = model.model.get_video_features(pixel_values[None]).pooler_output
    torch.testing.assert_close(tokens[None], own, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_learned_pooling_has_one_stride():
    model = tiny.build("next_video", spatial_pool_mode="conv")
    backbone = BACKBONES[type(model).__name__](model)
    plan = plan_of(backbone, "plan: {kind: uniform, stride: 3}", frames=2)
    with pytest.raises(UserError, match=r"2 x 2 cells .* convolution of stride 2; use stride 2"):
        video_tokens(backbone, tiny.pixels(model, 2), plan)

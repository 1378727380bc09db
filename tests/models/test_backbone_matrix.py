"""Any plan x any window x any backbone: token counts by hand, the scale, finite logits; or the documented error."""

import math

import pytest
import torch

from longvid_train.adaptation.reading import parse_adaptation
from longvid_train.errors import UserError
from longvid_train.models.backbones import video_logits, video_tokens
from longvid_train.models.backbones.llama_vid import LlamaVid
from longvid_train.models.backbones.load import BACKBONES
from longvid_train.models.backbones.video_llava_joint import (
    JointVideoLlavaConfig,
    JointVideoLlavaForConditionalGeneration,
    VideoLlavaJoint,
)
from longvid_train.rope.extension import extended
from longvid_train.rope.scale import TokenCounts
from tests.models import tiny_backbones as tiny

FRAMES = 8
SMALL = 12
"""Tokens of the training window in most cells: these few frames are beyond it."""

# side of the patch grid, trained stride, class (or context) tokens, tokens after the video
GRIDS = {
    "onevision": (7, 2, 0, 1),
    "next_video": (6, 2, 0, 0),
    "video_llava": (4, 1, 1, 0),
    "joint": (4, 1, 1, 0),
    "interleave": (7, 1, 0, 0),
    "next_image": (6, 1, 0, 0),
    "llama_vid": (4, 4, 1, 0),
}
PARTIAL = ("onevision", "interleave")
NOT_STATED = ("interleave", "llama_vid")

# Frames of each pooling stride (rows, columns); a frame of two pathways stands twice.
PLANS = {
    "trained": ("", None),
    "stride_2": ("plan: {kind: uniform, stride: 2}", {(2, 2): 8}),
    "stride_3": ("plan: {kind: uniform, stride: 3}", {(3, 3): 8}),
    "uneven": ("plan: {kind: uniform, stride: [1, 2]}", {(1, 2): 8}),
    "progressive": ("plan: {kind: progressive, group: 3, high_stride: 1, low_stride: 2}", {(1, 1): 3, (2, 2): 5}),
    "slowfast": (
        "plan: {kind: slowfast, slow_frames: 2, slow_stride: [1, 2], fast_stride: 2}",
        {(1, 2): 2, (2, 2): 8},
    ),
    "slowfast_square": (
        "plan: {kind: slowfast, slow_frames: 2, slow_stride: 1, fast_stride: 2}",
        {(1, 1): 2, (2, 2): 8},
    ),
    "rearranged": ("grouping: rearranged", None),
}
WINDOWS = {
    "none": "{kind: none}",
    "refused": f"{{kind: none, measure: visual, trained_tokens: {SMALL}}}",
    "extrapolated": f"{{kind: none, extrapolate: true, measure: visual, trained_tokens: {SMALL}}}",
    "linear": f"{{kind: linear, measure: visual, trained_tokens: {SMALL}}}",
    "ntk": f"{{kind: ntk, measure: visual, trained_tokens: {SMALL}}}",
    "yarn": f"{{kind: yarn, bounds: share, alpha: 0.2, beta: 0.8, trained_tokens: {SMALL}}}",
    "visual_yarn": f"{{kind: visual_yarn, bounds: share, alpha: 0.2, beta: 0.8, trained_tokens: {SMALL}}}",
    "visual_yarn_own": "{kind: visual_yarn, bounds: share, alpha: 0.2, beta: 0.8}",
}
OWN_VISUAL = {"onevision": 32 * 16, "next_video": 32 * 9, "video_llava": 8 * 17, "joint": 4 * 17, "next_image": 5 * 36}


@pytest.fixture(scope="module", params=sorted(GRIDS))
def cell(request, llama_vid_kinds):
    name = request.param
    if name == "llama_vid":
        model = llama_vid_kinds["eva-qformer"]()
        backbone = LlamaVid(model).asked(torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.long))
        pixel_values = torch.randn(FRAMES, 3, 28, 28, generator=torch.Generator().manual_seed(0))
        return name, backbone, pixel_values
    if name == "joint":
        torch.manual_seed(3)
        config = JointVideoLlavaConfig(
            vision_config=tiny.clip(16), text_config=tiny.LlamaConfig(**tiny.LANGUAGE), joint_frames=4, **tiny.IDS
        )
        model = JointVideoLlavaForConditionalGeneration(config).eval()
        return name, VideoLlavaJoint(model), tiny.pixels(model, FRAMES)
    model = tiny.build(name)
    return name, BACKBONES[type(model).__name__](model), tiny.pixels(model, FRAMES)


def unsupported(name, plan_name, window):
    """The documented error of a cell, or None; plans are checked first."""
    side = GRIDS[name][0]
    strides = PLANS[plan_name][1] or {}
    if name not in PARTIAL and any(side % one for stride in strides for one in stride):
        return "does not divide"
    if name == "llama_vid" and any(rows != columns for rows, columns in strides):
        return "square blocks"
    if window == "refused":
        return "over the window of 12"
    if window == "visual_yarn_own" and name in NOT_STATED:
        return "not stated; set window.trained_tokens"
    return None


def expected_frame_tokens(name, plan_name):
    side, stride, classes, _ = GRIDS[name]
    shown = PLANS[plan_name][1] or {(stride, stride): FRAMES}
    return sum(
        count * (classes + math.ceil(side / rows) * math.ceil(side / columns))
        for (rows, columns), count in shown.items()
    )


MADE = {}
"""Visual tokens of a backbone and plan, for all its windows."""


def logits_of(backbone, pixel_values, adaptation):
    """Plan, tokens, extension, and logits of a prompt around the tokens under it and after it."""
    plan = adaptation.plan_frames(FRAMES, backbone.facts.grid)
    key = backbone, adaptation.plan, adaptation.grouping
    if key not in MADE:
        MADE[key] = video_tokens(backbone, pixel_values, plan, frame_chunk=3)
    tokens = MADE[key]
    ids = torch.tensor([[1, 7, *[backbone.facts.placeholder_id] * len(tokens), 12, 13]])
    counts = TokenCounts(visual=plan.frame_tokens, total=ids.shape[1])
    with extended(backbone.model, adaptation.window, counts=counts, trained=backbone.facts.trained) as extension:
        logits = video_logits(backbone, ids, tokens, last=0)
    return plan, tokens, extension, logits, video_logits(backbone, ids, tokens, last=0)


@pytest.mark.parametrize("window", sorted(WINDOWS))
@pytest.mark.parametrize("plan_name", sorted(PLANS))
@torch.no_grad()
def test_every_cell_counts_its_tokens_and_gives_finite_logits_or_says_why_not(cell, plan_name, window):
    name, backbone, pixel_values = cell
    adaptation = parse_adaptation(f"{PLANS[plan_name][0]}\nwindow: {WINDOWS[window]}", where="test")
    error = unsupported(name, plan_name, window)
    if error is not None:
        with pytest.raises(UserError, match=error) as raised:
            logits_of(backbone, pixel_values, adaptation)
        assert "\n" not in str(raised.value)
        return
    plan, tokens, extension, logits, plain = logits_of(backbone, pixel_values, adaptation)
    frame_tokens = expected_frame_tokens(name, plan_name)
    assert plan.frame_tokens == frame_tokens
    assert len(tokens) == plan.visual_tokens == frame_tokens + GRIDS[name][3]
    assert logits.shape[1] == len(tokens) + 4 and bool(logits.isfinite().all())
    measured = logits.shape[1] if window == "yarn" else frame_tokens
    trained = OWN_VISUAL[name] if window == "visual_yarn_own" else SMALL
    scale = 1.0 if window in ("none", "extrapolated") else max(1.0, measured / trained)
    assert extension.scale == pytest.approx(scale)
    assert torch.equal(logits, plain) == (scale == 1)

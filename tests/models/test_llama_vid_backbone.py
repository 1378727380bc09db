"""LLaMA-VID behind the protocol: its own head's tokens, for a question, at any square resolution."""

import pytest
import torch

from longvid_train.adaptation.reading import parse_adaptation
from longvid_train.errors import UserError
from longvid_train.models.backbones import load_backbone, read_facts, video_tokens
from longvid_train.models.backbones.llama_vid import LlamaVid
from longvid_train.models.backbones.resized import resized_facts
from longvid_train.types import ALL_PATCHES

FRAMES = 5
PROMPT = torch.tensor([[8, 9, 10, 11]]), torch.ones(1, 4, dtype=torch.long)


def frames():
    return torch.randn(FRAMES, 3, 28, 28, generator=torch.Generator().manual_seed(2))


def plan_of(backbone, text=""):
    return parse_adaptation(text, where="test").plan_frames(FRAMES, backbone.facts.grid)


def head_tokens(model, spans, grids):
    """What the model's own head makes of showings ``[first, count]`` at content grids, for `PROMPT`."""
    rows = torch.tensor([[first, count, 0] for first, count in spans])
    return model.visual_tokens(model.encode_frames(frames()), rows, torch.tensor(grids), *PROMPT)


@pytest.mark.parametrize("grid", [1, 2, ALL_PATCHES])
@torch.no_grad()
def test_without_a_plan_the_tokens_are_those_of_training(any_model, grid):
    if not any_model.config.use_content:
        with pytest.raises(UserError, match="context tokens only"):
            LlamaVid(any_model, content_grid=grid)
        return
    backbone = LlamaVid(any_model, content_grid=grid).asked(*PROMPT)
    plan = plan_of(backbone)
    tokens = video_tokens(backbone, frames(), plan, frame_chunk=2)
    assert plan.visual_tokens == FRAMES * any_model.config.tokens_per_frame(grid)
    torch.testing.assert_close(tokens, head_tokens(any_model, [(0, FRAMES)], [grid]), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_two_tokens_a_frame_is_the_default(model):
    assert plan_of(LlamaVid(model)).visual_tokens == 2 * FRAMES


@torch.no_grad()
def test_a_plan_mixes_resolutions_and_every_showing_has_its_context_token(model):
    backbone = LlamaVid(model).asked(*PROMPT)
    text = "plan: {kind: progressive, group: 2, high_stride: 2, low_stride: 4}"
    tokens = video_tokens(backbone, frames(), plan_of(backbone, text))
    expected = head_tokens(model, [(number, 1) for number in range(FRAMES)], [2, 1, 2, 1, 2])
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_another_question_makes_other_context_tokens_of_the_same_features(model):
    plain = LlamaVid(model)
    features = plain.encode(frames())
    one = plain.asked(*PROMPT).frame_tokens(features, 1, 1)
    other = plain.asked(torch.tensor([[30, 31]]), torch.ones(1, 2, dtype=torch.long)).frame_tokens(features, 1, 1)
    assert torch.equal(one[:, 1:], other[:, 1:])
    assert not torch.allclose(one[:, 0], other[:, 0], atol=1e-3)
    with pytest.raises(UserError, match=r"give it first: backbone\.asked"):
        plain.frame_tokens(features, 1, 1)


def test_cells_that_are_not_square_are_refused(model):
    backbone = LlamaVid(model).asked(*PROMPT)
    with pytest.raises(UserError, match="2 x 4 cells asked for, but LLaMA-VID's content tokens are square"):
        video_tokens(backbone, frames(), plan_of(backbone, "plan: {kind: uniform, stride: [2, 1]}"))


@torch.no_grad()
def test_a_saved_folder_is_a_backbone_like_any_other(model, tmp_path):
    model.save_pretrained(tmp_path)
    facts = read_facts(tmp_path)
    assert (facts.model_type, facts.grid.class_tokens, facts.grid.stride) == ("llama_vid", 1, 4)
    assert facts.trained.visual is None and facts.trained.language == model.config.text_config.max_position_embeddings
    backbone = load_backbone(tmp_path)
    assert isinstance(backbone, LlamaVid)
    plan = plan_of(backbone)
    again = video_tokens(backbone.asked(*PROMPT), frames(), plan)
    assert torch.equal(again, video_tokens(LlamaVid(model).asked(*PROMPT), frames(), plan))


def test_pictures_of_another_size_would_save_nothing(model):
    with pytest.raises(UserError, match="as many tokens at any resolution"):
        resized_facts(model.config, 14)

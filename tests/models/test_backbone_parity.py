"""Without an adaptation every backbone computes what transformers computes, before and after saving."""

import pytest
import torch

from longvid_train.adaptation.settings import Adaptation
from longvid_train.errors import UserError
from longvid_train.models.backbones import generate, load_backbone, multimodal_embeddings, video_logits, video_tokens
from longvid_train.models.backbones.load import BACKBONES
from tests.models import tiny_backbones as tiny

NAMES = sorted(tiny.BUILDERS)
CLOSE = {"atol": 2e-5, "rtol": 1e-5}


def wrap(model):
    return BACKBONES[type(model).__name__](model)


def shown(backbone, pixel_values, **options):
    plan = Adaptation().plan_frames(len(pixel_values), backbone.facts.grid)
    return video_tokens(backbone, pixel_values, plan, **options)


@pytest.mark.parametrize("frames", [1, 3, 8])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_logits_are_those_of_transformers_forward(name, frames):
    model = tiny.build(name)
    backbone, pixel_values = wrap(model), tiny.pixels(model, frames)
    tokens = shown(backbone, pixel_values, frame_chunk=3)
    assert len(tokens) == frames * tiny.FRAME_TOKENS[name] + tiny.END_TOKENS.get(name, 0)
    input_ids = tiny.prompt(name, len(tokens))
    expected = model(input_ids=input_ids, **tiny.own_inputs(name, model, pixel_values)).logits
    torch.testing.assert_close(video_logits(backbone, input_ids, tokens, last=0), expected, **CLOSE)
    assert expected.std() > 0.1  # logits that say nothing would agree too
    mirrored = video_logits(backbone, input_ids, shown(backbone, pixel_values.flip(-1)), last=1)
    assert (mirrored - expected[:, -1:]).abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_reloaded_checkpoint_computes_the_same_bits(name, tmp_path):
    model = tiny.build(name)
    first = wrap(model)
    pixel_values = tiny.pixels(model, 4)
    tokens = shown(first, pixel_values)
    input_ids = tiny.prompt(name, len(tokens))
    first.model.save_pretrained(tmp_path / "saved")
    again = load_backbone(tmp_path / "saved")
    assert type(again) is type(first) and type(again.model) is type(model)
    assert again.facts == first.facts
    assert torch.equal(
        video_logits(again, input_ids, shown(again, pixel_values), last=0),
        video_logits(first, input_ids, tokens, last=0),
    )
    again.model.save_pretrained(tmp_path / "twice")
    once, twice = (tmp_path / folder / "model.safetensors" for folder in ("saved", "twice"))
    assert once.read_bytes() == twice.read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_generation_is_transformers_own_with_one_position_of_logits(name):
    model = tiny.build(name)
    model.generation_config.eos_token_id = None
    backbone, pixel_values = wrap(model), tiny.pixels(model, 3)
    with torch.no_grad():
        tokens = shown(backbone, pixel_values)
        own = tiny.own_inputs(name, model, pixel_values)
    input_ids = tiny.prompt(name, len(tokens))
    options = {"max_new_tokens": 5, "do_sample": False}
    widths = []
    hook = model.lm_head.register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[1]))
    answer = generate(backbone, input_ids, tokens, **options)
    hook.remove()
    assert widths == [1] * 5
    own_answer = model.generate(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), **own, **options)
    assert answer.tolist() == own_answer[:, input_ids.shape[1] :].tolist()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_padded_rows_of_two_videos_answer_as_alone(name):
    model = tiny.build(name)
    backbone = wrap(model)
    videos = [shown(backbone, tiny.pixels(model, frames, seed=frames)) for frames in (1, 2)]
    rows = [tiny.prompt(name, len(tokens)) for tokens in videos]
    alone = [video_logits(backbone, row, tokens) for row, tokens in zip(rows, videos, strict=True)]
    padding = rows[1].shape[1] - rows[0].shape[1]
    padded = torch.cat([torch.nn.functional.pad(rows[0], (padding, 0)), rows[1]])
    mask = torch.ones_like(padded)
    mask[0, :padding] = 0
    answers = generate(
        backbone, padded, torch.cat(videos), attention_mask=mask, max_new_tokens=1, do_sample=False, eos_token_id=None
    )
    assert answers.tolist() == [[int(logits[0, -1].argmax())] for logits in alone]


@pytest.mark.parametrize("frame_chunk", [1, 2, 5, 64])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_no_more_frames_pass_the_tower_at_once_than_the_chunk(name, frame_chunk):
    model = tiny.build(name)
    backbone, pixel_values = wrap(model), tiny.pixels(model, 5)
    seen = []
    hook = backbone._tower if name != "next_video" else model.model.vision_tower
    handle = hook.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    tokens = shown(backbone, pixel_values, frame_chunk=frame_chunk)
    handle.remove()
    assert max(seen) == min(frame_chunk, 5) and sum(seen) == 5
    torch.testing.assert_close(tokens, shown(backbone, pixel_values), **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_a_frozen_tower_has_no_graph_and_the_projector_transformers_gradient(name):
    model = tiny.build(name)
    backbone, pixel_values = wrap(model), tiny.pixels(model, 2)
    model.requires_grad_(False)
    projector = model.model.multi_modal_projector.requires_grad_(True)
    tokens = shown(backbone, pixel_values)
    input_ids = tiny.prompt(name, len(tokens))
    video_logits(backbone, input_ids, tokens, last=0).square().sum().backward()
    found = [parameter.grad.clone() for parameter in projector.parameters()]
    projector.zero_grad()
    own = tiny.own_inputs(name, model, pixel_values)
    model(input_ids=input_ids, **own).logits.square().sum().backward()
    for gradient, parameter in zip(found, projector.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-3 * float(parameter.grad.abs().max()))
    model.requires_grad_(False)
    assert not shown(backbone, pixel_values).requires_grad


@torch.no_grad()
def test_placeholders_that_do_not_match_are_counted():
    backbone = wrap(tiny.build("onevision"))
    tokens = shown(backbone, tiny.pixels(backbone.model, 2))
    with pytest.raises(UserError, match=r"32 visual placeholders .* make 33 visual tokens"):
        multimodal_embeddings(backbone, tiny.prompt("onevision", 32), tokens)

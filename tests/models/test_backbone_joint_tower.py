"""Video-LLaVA's joint-frame tower: temporal attention, groups, rearrangement, public names."""

import pytest
import torch
from torch.nn.functional import layer_norm, linear

from longvid_train.adaptation.reading import parse_adaptation
from longvid_train.errors import UserError
from longvid_train.models.backbones import backbone_skeleton, load_backbone, read_facts, video_logits, video_tokens
from longvid_train.models.backbones.joint_tower import JointVisionTower
from longvid_train.models.backbones.video_llava_joint import (
    PUBLIC_PREFIXES,
    JointVideoLlavaConfig,
    JointVideoLlavaForConditionalGeneration,
    VideoLlavaJoint,
    from_public_weights,
)
from longvid_train.rope.extension import extended
from longvid_train.rope.scale import TokenCounts, TrainedWindows
from tests.models import tiny_backbones as tiny

JOINT = 4


def tiny_config():
    return JointVideoLlavaConfig(
        vision_config=tiny.clip(16), text_config=tiny.LlamaConfig(**tiny.LANGUAGE), joint_frames=JOINT, **tiny.IDS
    )


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(5)
    built = JointVideoLlavaForConditionalGeneration(tiny_config()).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return built


def plan_of(backbone, frames, adaptation=""):
    return parse_adaptation(adaptation, where="test").plan_frames(frames, backbone.facts.grid)


def heads_attention(attention, tokens):
    """``(K, C)`` -> ``(K, C)``: plain multi-head attention over the rows."""

    def projected(part):
        return linear(tokens, part.weight, part.bias).reshape(len(tokens), attention.num_heads, -1).transpose(0, 1)

    queries, keys, values = map(projected, (attention.q_proj, attention.k_proj, attention.v_proj))
    weights = (queries @ keys.transpose(1, 2) / queries.shape[-1] ** 0.5).softmax(-1)
    mixed = (weights @ values).transpose(0, 1).reshape(tokens.shape)
    return linear(mixed, attention.out_proj.weight, attention.out_proj.bias)


def reference_layer(layer, group):
    """One layer of the public tower, position by position, then frame by frame: ``(K, 1 + P, C)``."""
    out = group + layer.temporal_embedding[0][:, None]
    norm = layer.temporal_layer_norm1
    rows = []
    for place in range(out.shape[1]):
        normed = layer_norm(out[:, place], norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        rows.append(out[:, place] + heads_attention(layer.temporal_attn, normed))
    out = torch.stack(rows, dim=1)
    out = torch.stack([one + heads_attention(layer.self_attn, layer.layer_norm1(one)) for one in out])
    return out + layer.mlp(layer.layer_norm2(out))


@torch.no_grad()
def test_the_tower_computes_the_public_layers_group_by_group(model):
    tower = model.model.video_tower
    pixel_values = tiny.pixels(model, 2 * JOINT)
    states = tower(pixel_values, output_hidden_states=True).hidden_states
    assert len(states) == 4
    expected = torch.stack([tower.pre_layrnorm(tower.embeddings(one[None]))[0] for one in pixel_values])
    torch.testing.assert_close(states[0], expected, atol=1e-5, rtol=1e-5)
    for depth, layer in enumerate(tower.encoder.layers):
        groups = [reference_layer(layer, expected[first : first + JOINT]) for first in (0, JOINT)]
        expected = torch.cat(groups)
        torch.testing.assert_close(states[depth + 1], expected, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_logits_are_those_of_the_models_own_forward_also_after_saving(model, tmp_path):
    backbone, pixel_values = VideoLlavaJoint(model), tiny.pixels(model, 2 * JOINT)
    tokens = video_tokens(backbone, pixel_values, plan_of(backbone, 2 * JOINT), frame_chunk=JOINT)
    input_ids = tiny.prompt("video_llava", len(tokens))
    assert len(tokens) == 2 * JOINT * 17
    expected = model(input_ids=input_ids, pixel_values_videos=pixel_values[None]).logits
    found = video_logits(backbone, input_ids, tokens, last=0)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    model.save_pretrained(tmp_path / "joint")
    again = load_backbone(tmp_path / "joint")
    assert type(again) is VideoLlavaJoint and again.facts == backbone.facts == read_facts(tmp_path / "joint")
    same = video_tokens(again, pixel_values, plan_of(again, 2 * JOINT), frame_chunk=JOINT)
    assert torch.equal(video_logits(again, input_ids, same, last=0), found)


@pytest.mark.parametrize("groups", [1, 2, 3])
@torch.no_grad()
def test_rearranged_frames_are_encoded_as_interleaved_clips_and_put_back_in_time(model, groups):
    backbone, frames = VideoLlavaJoint(model), groups * JOINT
    pixel_values = tiny.pixels(model, frames)
    tokens = video_tokens(backbone, pixel_values, plan_of(backbone, frames, "grouping: rearranged")).unflatten(
        0, (-1, 17)
    )
    for first in range(groups):
        clip = video_tokens(backbone, pixel_values[first::groups], plan_of(backbone, JOINT)).unflatten(0, (-1, 17))
        torch.testing.assert_close(tokens[first::groups], clip, atol=1e-5, rtol=1e-5)
    plain = video_tokens(backbone, pixel_values, plan_of(backbone, frames)).unflatten(0, (-1, 17))
    assert bool((plain - tokens).abs().max() > 1e-3) == (groups > 1)


@pytest.mark.parametrize("frame_chunk", [1, 5, 8, 100])
@torch.no_grad()
def test_chunks_are_whole_groups(model, frame_chunk):
    backbone, pixel_values, seen = VideoLlavaJoint(model), tiny.pixels(model, 3 * JOINT), []
    plan = plan_of(backbone, 3 * JOINT, "grouping: rearranged")
    hook = model.model.video_tower.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    tokens = video_tokens(backbone, pixel_values, plan, frame_chunk=frame_chunk)
    hook.remove()
    assert all(count % JOINT == 0 for count in seen) and max(seen) <= max(JOINT, frame_chunk)
    torch.testing.assert_close(tokens, video_tokens(backbone, pixel_values, plan), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("plan_name", ["progressive", "slowfast"])
@torch.no_grad()
def test_rearrangement_goes_with_plans_and_windows(model, plan_name):
    plans = {
        "progressive": ("plan: {kind: progressive, group: 4, high_stride: 1, low_stride: 2}", 2 * 17 + 6 * 5),
        "slowfast": ("plan: {kind: slowfast, slow_frames: 2, slow_stride: [1, 2], fast_stride: 4}", 2 * 9 + 8 * 2),
    }
    text, count = plans[plan_name]
    text += "\ngrouping: rearranged\nwindow: {kind: ntk, measure: visual}"
    adaptation = parse_adaptation(text, where="test")
    backbone = VideoLlavaJoint(model)
    plan = adaptation.plan_frames(2 * JOINT, backbone.facts.grid)
    tokens = video_tokens(backbone, tiny.pixels(model, 2 * JOINT), plan)
    assert len(tokens) == plan.visual_tokens == count
    input_ids = tiny.prompt("video_llava", count)
    counts = TokenCounts(visual=plan.frame_tokens, total=input_ids.shape[1])
    with extended(
        model, adaptation.window, counts=counts, trained=TrainedWindows(visual=20, language=512)
    ) as extension:
        logits = video_logits(backbone, input_ids, tokens)
    assert extension.scale == count / 20 and bool(logits.isfinite().all())
    assert not torch.equal(logits, video_logits(backbone, input_ids, tokens))


@torch.no_grad()
def test_the_public_sizes_make_257_tokens_a_frame():
    tower = tiny.CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
    )
    language = tiny.LlamaConfig(max_position_embeddings=4096)
    backbone = backbone_skeleton(JointVideoLlavaConfig(vision_config=tower, text_config=language))
    facts = backbone.facts
    assert (facts.grid.joint_frames, facts.trained.visual, facts.trained.language) == (8, 2056, 4096)
    plan = plan_of(backbone, 64, "grouping: rearranged")
    tokens = video_tokens(backbone, torch.empty(64, 3, 224, 224, device="meta"), plan, frame_chunk=64)
    assert tuple(tokens.shape) == (64 * 257, 4096)


def test_frames_that_fill_no_group_are_refused(model):
    with pytest.raises(UserError, match="6 frames cannot be encoded by a tower that takes 4 together"):
        plan_of(VideoLlavaJoint(model), 6)


def test_a_fresh_tower_tells_frames_apart():
    tower = JointVisionTower(tiny.clip(16), JOINT)
    for layer in tower.encoder.layers:
        assert 0.1 < float(layer.temporal_embedding.detach().std()) * 32**0.5 < 2
        assert bool((layer.temporal_layer_norm1.weight == 1).all())


def public_weights(model):
    """The model's tensors under the names of LanguageBind/Video-LLaVA-7B, with its computed buffers."""
    own_to_public = {own: public for public, own in PUBLIC_PREFIXES.items()}
    weights = {}
    for name, tensor in model.state_dict().items():
        prefix = max((own for own in own_to_public if name.startswith(own)), key=len)
        weights[own_to_public[prefix] + name.removeprefix(prefix)] = tensor.clone()
    weights["model.video_tower.video_tower.embeddings.position_ids"] = torch.arange(17)[None]
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(5)
    return weights


def test_public_names_load_strictly(model):
    weights = public_weights(model)
    for name in (
        "model.video_tower.video_tower.encoder.layers.2.temporal_embedding",
        "model.video_tower.video_tower.encoder.layers.0.temporal_attn.q_proj.weight",
        "model.video_tower.video_tower.encoder.layers.1.temporal_layer_norm1.bias",
        "model.video_tower.video_tower.pre_layrnorm.weight",
        "model.image_tower.image_tower.encoder.layers.0.self_attn.k_proj.bias",
        "model.mm_projector.2.bias",
        "model.layers.1.mlp.up_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
    ):
        assert name in weights
    loaded = from_public_weights(tiny_config(), weights).state_dict()
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        (
            "model.video_tower.video_tower.encoder.layers.2.temporal_embedding",
            None,
            "lacks 1 weights, first model.video",
        ),
        ("model.norm.bias", torch.zeros(40), "has left over 1 weights, first model.language_model.norm.bias"),
        ("model.vision_resampler.weight", torch.zeros(1), "is no weight of a public Video-LLaVA"),
        ("model.mm_projector.0.bias", torch.zeros(41), r"has shape \(41,\), the configuration says \(40,\)"),
    ],
)
def test_public_weights_that_do_not_fit_are_named(model, name, tensor, said):
    weights = public_weights(model)
    if tensor is None:
        del weights[name]
    else:
        weights[name] = tensor
    with pytest.raises(UserError, match=said):
        from_public_weights(tiny_config(), weights)

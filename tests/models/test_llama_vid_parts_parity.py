"""Tower, text decoders and language model against transformers' own classes; parameter counts of the 7B model."""

import pytest
import torch
from transformers import (
    CLIPVisionModel,
    InstructBlipQFormerConfig,
    InstructBlipQFormerModel,
    InstructBlipVisionConfig,
    InstructBlipVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from longvid_train.models.llama_vid import ClipVisionTower, LlamaVidConfig, LlamaVidForConditionalGeneration


@torch.no_grad()
def test_eva_tower_is_instructblip_without_the_last_norm(model, tiny):
    theirs = InstructBlipVisionModel(tiny.eva()).eval()
    report = theirs.load_state_dict(model.vision_tower.state_dict(), strict=False)
    assert report.missing_keys == ["post_layernorm.weight", "post_layernorm.bias"]
    assert report.unexpected_keys == []
    pixels = torch.randn(7, 3, 28, 28)
    expected = theirs(pixels, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(model.encode_frames(pixels), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", [-1, -2, 0, 1])
@torch.no_grad()
def test_clip_tower_is_the_chosen_hidden_state(tiny, tmp_path, layer):
    torch.manual_seed(0)
    theirs = CLIPVisionModel(tiny.clip()).eval()
    theirs.save_pretrained(tmp_path)
    tower = ClipVisionTower.from_pretrained(tmp_path, select_layer=layer).eval()
    pixels = torch.randn(2, 3, 28, 28)
    expected = theirs(pixels, output_hidden_states=True).hidden_states[layer]
    torch.testing.assert_close(tower.encode(pixels), expected, rtol=1e-5, atol=1e-6)
    assert len(tower.encoder.layers) == {-1: 3, -2: 2, 0: 0, 1: 1}[layer]


@torch.no_grad()
def test_a_larger_picture_interpolates_position_embeddings_bicubically(tiny):
    model = tiny.build(tiny.eva(), None, image_size=42)
    assert model.config.visual_grid == 6
    native = tiny.build(tiny.eva(image_size=42), None)
    state = model.vision_tower.state_dict()
    positions = state["embeddings.position_embedding"]
    square = positions[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    larger = torch.nn.functional.interpolate(square, size=(6, 6), mode="bicubic", align_corners=False)
    state["embeddings.position_embedding"] = torch.cat(
        [positions[:, :1], larger.permute(0, 2, 3, 1).reshape(1, 36, -1)], dim=1
    )
    native.vision_tower.load_state_dict(state)
    pixels = torch.randn(2, 3, 42, 42)
    torch.testing.assert_close(model.encode_frames(pixels), native.encode_frames(pixels))


@torch.no_grad()
def test_qformer_text_decoder_is_instructblips_qformer_fed_by_hand(model, tiny):
    decoder = model.text_decoder
    theirs = InstructBlipQFormerModel(tiny.qformer()).eval()
    theirs.load_state_dict(decoder.qformer.state_dict())
    features = torch.randn(2, 17, 32) * 3
    ids = torch.tensor([[5, 6, 7, 0], [8, 9, 10, 11]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    norm = decoder.vision_norm
    assert norm.eps == 1e-5
    centred = features - features.mean(-1, keepdim=True)
    vision = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias
    expected = theirs(
        input_ids=ids,
        attention_mask=torch.cat([torch.ones(2, 4, dtype=torch.long), mask], dim=1),
        query_embeds=decoder.queries.expand(2, -1, -1),
        encoder_hidden_states=vision,
    ).last_hidden_state[:, :4]
    outputs, query_mask = decoder(features, ids, mask)
    assert query_mask is None
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["qformer", "bert"])
def test_padding_of_the_prompt_changes_no_token(tiny, kind):
    model = tiny.build(tiny.eva(), getattr(tiny, kind)())
    features = torch.randn(3, 17, 32)
    spans, grids = torch.tensor([[0, 3, 0]]), torch.tensor([2])
    short = torch.tensor([[5, 6, 7]])
    padded = torch.tensor([[5, 6, 7, 0, 9, 9]])
    mask = torch.tensor([[1, 1, 1, 0, 0, 0]])
    alone = model.visual_tokens(features, spans, grids, short, torch.ones_like(short))
    torch.testing.assert_close(model.visual_tokens(features, spans, grids, padded, mask), alone, rtol=1e-4, atol=1e-5)
    unmasked = model.visual_tokens(features, spans, grids, padded, torch.ones_like(mask))
    assert (unmasked - alone).abs().max() > 1e-3


@torch.no_grad()
def test_an_empty_prompt_gives_finite_tokens(any_model):
    ids = torch.zeros(1, 1, dtype=torch.long)
    features = torch.randn(1, 17, 32)
    tokens = any_model.visual_tokens(features, torch.tensor([[0, 1, 0]]), torch.tensor([1]), ids, ids)
    assert torch.isfinite(tokens).all()


@torch.no_grad()
def test_text_only_logits_are_llamas_and_no_vision_runs(any_model):
    llama = LlamaForCausalLM(any_model.config.text_config).eval()
    llama.load_state_dict(any_model.language_model.state_dict())
    calls = []
    any_model.vision_tower.register_forward_pre_hook(lambda *_: calls.append(1))
    ids = torch.randint(3, 50, (2, 9))
    torch.testing.assert_close(any_model(input_ids=ids).logits, llama(input_ids=ids).logits)
    assert calls == []


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_7b_model_has_the_published_sizes():
    config = LlamaVidConfig(
        vision_config=InstructBlipVisionConfig(),
        text_decoder_config=InstructBlipQFormerConfig(vocab_size=30523),
        text_config=LlamaConfig(),
    )
    with torch.device("meta"):
        model = LlamaVidForConditionalGeneration(config)
    width, mlp = 1408, 6144
    block = 4 * width * width + 3 * width + width + 4 * width + 2 * width * mlp + mlp + width
    patch = 3 * 14 * 14 * width + width
    assert count(model.vision_tower) == 39 * block + patch + width + 257 * width
    assert round(count(model.vision_tower) / 1e6) == 986
    q = 768
    attention, norm, ffn = 4 * (q * q + q), 2 * q, 2 * q * 3072 + 3072 + q
    cross = 2 * (q * q + q) + 2 * (width * q + q) + norm
    qformer = 12 * (attention + norm + 2 * (ffn + norm)) + 6 * cross + (30523 + 512) * q + norm
    assert count(model.text_decoder) == qformer + 32 * q + 2 * width
    assert count(model.language_model) == 6_738_415_616
    assert count(model.context_attention) == (q * width + width) + (width * width + width) + (width * 4096 + 4096)
    assert count(model.content_projector) == (width * 4096 + 4096) + (4096 * 4096 + 4096)
    assert config.tokens_per_frame(1) == 2
    assert config.tokens_per_frame(0) == 257

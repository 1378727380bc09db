"""Vision-language models of transformers: the text decoder reads codes, the tower is left alone."""

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    DynamicCache,
    LlamaConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

from longvid_train.kvcache.attention import ATTENTION_NAME, attending_on_codes, rotation_of
from longvid_train.kvcache.cache import QuantizedKVCache
from longvid_train.kvcache.fitting import fit_quantizer
from longvid_train.kvcache.observing import observing
from longvid_train.kvcache.policy import CachePolicy
from longvid_train.kvcache.quantizer import cache_shape, uncalibrated
from longvid_train.kvcache.schemes.lloyd_max import LloydMax
from longvid_train.kvcache.schemes.static_channel import StaticChannel
from longvid_train.kvcache.statistics import Statistics

FRAMES, VIDEO_ID, IMAGE_ID = 4, 45, 46
TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}
LANGUAGE = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
IDS = {"image_token_index": IMAGE_ID, "video_token_index": VIDEO_ID}


def onevision():
    tower = SiglipVisionConfig(**TOWER, image_size=28, vision_use_head=False)
    config = LlavaOnevisionConfig(vision_config=tower, text_config=Qwen2Config(**LANGUAGE), **IDS)
    return LlavaOnevisionForConditionalGeneration(config), FRAMES * 16 + 1, 28


def video_llava():
    config = VideoLlavaConfig(
        vision_config=CLIPVisionConfig(**TOWER, image_size=16), text_config=LlamaConfig(**LANGUAGE), **IDS
    )
    return VideoLlavaForConditionalGeneration(config), FRAMES * 17, 16


@pytest.fixture(params=[onevision, video_llava], ids=lambda builder: builder.__name__)
def loaded(request):
    """A model and its inputs: two rows about a video each, the second padded on the left."""
    torch.manual_seed(0)
    model, video_tokens, side = request.param()
    words = torch.randint(2, 44, (2, 12))
    ids = torch.cat([words[:, :7], torch.full((2, video_tokens), VIDEO_ID), words[:, 7:]], dim=1)
    mask = torch.ones_like(ids)
    ids[1, :4], mask[1, :4] = 0, 0
    pixels = torch.randn(2, FRAMES, 3, side, side)
    return model.eval(), {"input_ids": ids, "attention_mask": mask, "pixel_values_videos": pixels}


def generate(model, inputs, cache):
    with torch.no_grad():
        return model.generate(
            **inputs,
            past_key_values=cache,
            max_new_tokens=8,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )


def test_generation_about_a_video_is_that_of_an_uncompressed_cache(loaded):
    model, inputs = loaded
    expected = generate(model, inputs, DynamicCache(config=model.config.get_text_config()))
    tower = model.model.vision_tower if hasattr(model.model, "vision_tower") else model.model.video_tower
    before = tower.config._attn_implementation
    policy = CachePolicy(sink_tokens=2, recent_tokens=5, flush_tokens=4)
    cache = QuantizedKVCache(uncalibrated(policy, cache_shape(model.config)), page_tokens=16)
    with attending_on_codes(model):
        assert tower.config._attn_implementation == before
        assert model.get_decoder().config._attn_implementation == ATTENTION_NAME
        ours = generate(model, inputs, cache)
    assert torch.equal(ours.sequences, expected.sequences)
    assert torch.allclose(torch.stack(ours.logits), torch.stack(expected.logits), atol=2e-4, rtol=1e-3)
    assert len(cache.layers[0].pages) > 3


def test_text_and_visual_tokens_get_parameters_of_their_own(loaded):
    model, inputs = loaded
    statistics = Statistics(cache_shape(model.config), sample_tokens=128)
    visual = inputs["input_ids"] == VIDEO_ID
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad(), observing(model, statistics):
        statistics.begin([0, 1], inputs["attention_mask"], visual)
        model(**inputs, position_ids=positions, use_cache=False, logits_to_keep=1)
    # The first 4 tokens of each row: 4 words; behind 4 of padding, 3 words and a visual token.
    assert statistics.tokens.tolist() == [8 + 5, int(visual.sum()) - 1]
    policy = CachePolicy(
        keys=LloydMax(bits=4, rotary="pre"),
        values=StaticChannel(bits=8, search="minmax"),
        recent_tokens=5,
        flush_tokens=4,
        separate_visual=True,
    )
    quantizer = fit_quantizer(policy, statistics, rotation_of(model))
    cache = QuantizedKVCache(quantizer, page_tokens=16)
    cache.describe(visual=visual)
    with attending_on_codes(model):
        ours = generate(model, inputs, cache)
    expected = generate(model, inputs, DynamicCache(config=model.config.get_text_config()))
    first, second = (torch.stack(output.logits)[1].log_softmax(-1) for output in (expected, ours))
    assert 0 < float((first.exp() * (first - second)).sum(-1).mean()) < 0.3
    assert not torch.equal(quantizer.layers[0].keys["mean"][0], quantizer.layers[0].keys["mean"][1])

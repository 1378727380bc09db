"""Planned bytes of a quantized cache against the cache of a running model, to the byte."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from longvid_train.cost.coded_kv import check_same_shape, coded_kv, shape_of
from longvid_train.cost.decoder import decoder_shape
from longvid_train.cost.intp_table import VICUNA_7B
from longvid_train.errors import UserError
from longvid_train.kvcache.attention import attending_on_codes, rotation_of
from longvid_train.kvcache.cache import QuantizedKVCache
from longvid_train.kvcache.fitting import fit_quantizer
from longvid_train.kvcache.observing import observing
from longvid_train.kvcache.presets import PRESETS
from longvid_train.kvcache.quantizer import CacheShape, cache_shape
from longvid_train.kvcache.statistics import Statistics

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 61, "intermediate_size": 32}
FAMILIES = {"llama": (LlamaConfig, LlamaForCausalLM, 4), "qwen2": (Qwen2Config, Qwen2ForCausalLM, 2)}
WINDOWS = {"recent_tokens": 20, "flush_tokens": 8}


@pytest.fixture(scope="module", params=FAMILIES)
def observed(request):
    """A model of each kind of heads, and statistics of it."""
    config_class, model_class, kv_heads = FAMILIES[request.param]
    torch.manual_seed(0)
    model = model_class(config_class(**SIZES, hidden_size=128, num_key_value_heads=kv_heads)).eval()
    statistics = Statistics(cache_shape(model.config), sample_tokens=64)
    ids = torch.randint(1, 61, (1, 90))
    with torch.no_grad(), observing(model, statistics):
        statistics.begin([0], torch.ones_like(ids), torch.arange(90)[None] % 2 == 0)
        model(ids, use_cache=False, logits_to_keep=1)
    return model, statistics


def used(model, statistics, policy, *, rows, prompt, new, padding=0, page_tokens=1024):
    """What a cache holds when an answer of ``new`` tokens ends."""
    cache = QuantizedKVCache(fit_quantizer(policy, statistics, rotation_of(model)), page_tokens=page_tokens)
    ids = torch.randint(1, 61, (rows, prompt), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    if policy.separate_visual:
        cache.describe(visual=ids % 2 == 0)
    with attending_on_codes(model), torch.no_grad():
        model.generate(
            ids,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            prefill_chunk_size=64,
        )
    return cache.used_bytes()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_takes_the_bytes_that_are_planned(observed, name):
    model, statistics = observed
    shape = decoder_shape(model.config)
    for policy, rows, prompt, padding in (
        (PRESETS[name], 1, 290, 0),
        (replace(PRESETS[name], **WINDOWS), 2, 160, 37),
    ):
        found = used(model, statistics, policy, rows=rows, prompt=prompt, new=4, padding=padding, page_tokens=64)
        planned = coded_kv(policy, shape_of(shape), value_bytes=4)
        assert found.coded > 0
        assert planned.stored_bytes(shape, prompt + 3, rows) == found.total
        assert planned.parameter_bytes == found.parameters


@pytest.mark.parametrize(
    "changes",
    [
        {"separate_visual": True},
        {"protected_layers": (-1,)},
        {"sink_tokens": 0, "recent_tokens": 0, "flush_tokens": 1},
        {"sink_tokens": 9, "recent_tokens": 500},
    ],
    ids=["kinds", "protected", "no windows", "nothing coded"],
)
@pytest.mark.parametrize("name", ["static3", "bias2", "lloyd2", "intp2"])
def test_every_setting_takes_the_bytes_that_are_planned(observed, name, changes):
    model, statistics = observed
    if changes.get("sink_tokens") == 0:
        statistics = Statistics.from_state(statistics.state())
        statistics.skip_tokens = 0
    shape, policy = decoder_shape(model.config), replace(PRESETS[name], **{**WINDOWS, **changes})
    found = used(model, statistics, policy, rows=2, prompt=77, new=2, padding=5)
    assert coded_kv(policy, shape_of(shape), value_bytes=4).stored_bytes(shape, 78, 2) == found.total


def test_sixteen_bit_models_keep_sixteen_bit_windows(observed):
    model, statistics = observed
    shape, policy = decoder_shape(model.config), replace(PRESETS["k4v2"], **WINDOWS, protected_layers=(1,))
    with ExitStack() as restoring:
        restoring.callback(model.float)
        rotary = model.get_decoder().rotary_emb
        kept = rotary.inv_freq.clone()
        model.to(torch.bfloat16)
        rotary.inv_freq = kept
        found = used(model, statistics, policy, rows=1, prompt=120, new=3)
    assert coded_kv(policy, shape_of(shape), value_bytes=2).stored_bytes(shape, 122, 1) == found.total


def test_an_empty_cache_holds_its_parameters(observed):
    model, statistics = observed
    shape, policy = decoder_shape(model.config), PRESETS["lloyd2"]
    empty = QuantizedKVCache(fit_quantizer(policy, statistics, rotation_of(model))).used_bytes()
    assert coded_kv(policy, shape_of(shape), value_bytes=4).stored_bytes(shape, 0, 3) == empty.total > 0


@pytest.mark.parametrize(("name", "gb"), [("static2", 3.29), ("static4", 6.58), ("kivi_g32", 4.93)])
def test_a_long_video_on_vicuna(name, gb):
    """The floors of 50,176 tokens at 2, 4 and 3 bits, windows left out."""
    policy = replace(PRESETS[name], sink_tokens=0, recent_tokens=0)
    planned = coded_kv(policy, shape_of(VICUNA_7B), value_bytes=2)
    assert planned.stored_bytes(VICUNA_7B, 256 * 196, 1) / 1e9 == pytest.approx(gb, rel=2e-3)


def test_another_models_quantizer_is_refused():
    with pytest.raises(UserError, match="made/here is for 2 layers of 4 heads of 8, the model has 32 layers of 32"):
        check_same_shape("made/here", CacheShape(layers=2, heads=4, head_dim=8), VICUNA_7B)

"""The watched row of attention, and tokens that count several times: against eager attention and real copies."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

from longvid_train.errors import UserError
from longvid_train.kvcache.attention import attending_on_codes
from longvid_train.kvcache.cache import QuantizedKVCache
from longvid_train.kvcache.presets import PRESETS
from longvid_train.kvcache.quantizer import cache_shape, uncalibrated
from longvid_train.kvcache.thinning import ThinningCache
from longvid_train.kvcache.watch import WATCHED_NAME, AttentionWatch, watching

PROMPT = 90


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def model(request, shared_kv):
    return shared_kv.model(request.param, kv_heads=2 if request.param == "qwen2" else 4, head_dim=32, layers=3)


def ids_of(length=PROMPT, seed=7):
    return torch.randint(2, 48, (1, length), generator=torch.Generator().manual_seed(seed))


def new_cache(model, kind):
    if kind == "thinning":
        return ThinningCache(model.config.num_hidden_layers)
    if kind == "dynamic":
        return DynamicCache(config=model.config)
    policy = replace(PRESETS[kind], recent_tokens=16, flush_tokens=8)
    return QuantizedKVCache(uncalibrated(policy, cache_shape(model.config)), page_tokens=32)


def reading(model, cache):
    return attending_on_codes(model) if isinstance(cache, QuantizedKVCache) else nullcontext()


def step(model, cache, ids, **given):
    with torch.no_grad():
        return model(ids, past_key_values=cache, **given)


def eager_rows(model, ids):
    """``(layers, Hq, S)`` of the last query, from transformers' own eager attention over the whole sequence."""
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            attentions = model(ids, output_attentions=True, use_cache=False).attentions
    finally:
        model.set_attn_implementation("sdpa")
    return torch.stack([one[0, :, -1] for one in attentions])


@pytest.mark.parametrize("kind", ["dynamic", "thinning", "full"])
@pytest.mark.parametrize("pieces", [[PROMPT], [60, 29, 1], [89, 1]])
def test_weights_are_those_of_eager_attention(model, kind, pieces):
    """``full`` holds exact codes: the path of a quantized cache without its error."""
    ids, watch, cache = ids_of(), AttentionWatch(range(1, 3)), new_cache(model, kind)
    with reading(model, cache), watching(model, watch):
        for piece in torch.split(ids, pieces, dim=1):
            step(model, cache, piece)
        weights = torch.stack([watch.weights(layer) for layer in (1, 2)])
        row = watch.row()
    wanted = eager_rows(model, ids)[1:]
    torch.testing.assert_close(weights, wanted, atol=2e-5, rtol=0)
    torch.testing.assert_close(row, wanted.mean((0, 1)), atol=2e-5, rtol=0)
    assert row.sum().item() == pytest.approx(1, abs=1e-5)


def test_coded_keys_are_read_as_attention_reads_them(model):
    """At the last layer the queries are given: softmax of their products with the decoded keys, sinks exact."""
    ids, watch, cache = ids_of(), AttentionWatch(range(1)), new_cache(model, "kivi_g32")
    layer = cache.layers[0]
    with attending_on_codes(model), watching(model, watch):
        step(model, cache, ids[:, :-1])
        step(model, cache, ids[:, -1:])
        weights = watch.weights(0)
        seen = watch._seen[0]
    assert layer._store.length == 64
    decoded = [
        layer._key_codec.decode(page.keys, layer._places(start, start + page.length))
        for start, page in zip(range(0, PROMPT, 32), layer.pages, strict=False)
    ]
    keys = torch.cat([*decoded, layer._recent[0]], dim=2)[0]
    sinks = layer._sinks.index[0]
    keys[:, sinks] = layer._sinks.keys[0]
    queries = seen.query[0, :, 0].unflatten(0, (len(keys), -1)) * seen.scaling
    torch.testing.assert_close(weights, (queries @ keys.mT).flatten(0, 1).softmax(-1), atol=1e-5, rtol=0)


def copies_of(model, counts, ids):
    """Logits behind a cache whose tokens really stand ``counts`` times, at their own positions."""
    cache = DynamicCache(config=model.config)
    step(model, cache, ids[:, : len(counts)])
    index = torch.arange(len(counts)).repeat_interleave(counts)
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, index], layer.values[:, :, index]
    logits = []
    for place in range(len(counts), ids.shape[1]):
        position = torch.tensor([[place]])
        logits.append(step(model, cache, ids[:, place : place + 1], position_ids=position).logits[0, -1])
    return torch.stack(logits)


def counts_of(tokens):
    counts = torch.ones(tokens, dtype=torch.int64)
    counts[[3, 40, 41]], counts[10], counts[[5, 6, 70]] = 2, 4, 0
    return counts


@pytest.mark.parametrize("kind", ["dynamic", "full"])
def test_multiplicity_is_that_of_copied_and_dropped_keys(model, kind):
    ids, watch, cache = ids_of(PROMPT + 4), AttentionWatch(range(3)), new_cache(model, kind)
    counts = counts_of(PROMPT)
    with reading(model, cache), watching(model, watch):
        step(model, cache, ids[:, :PROMPT])
        watch.set_multiplicity(counts)
        own = torch.stack(
            [step(model, cache, ids[:, place : place + 1]).logits[0, -1] for place in range(PROMPT, PROMPT + 4)]
        )
        row = watch.row()
    assert kind == "dynamic" or cache.layers[0].pages, "most tokens are in pages"
    wanted = copies_of(model, counts, ids)
    torch.testing.assert_close(own, wanted, atol=2e-5, rtol=1e-4)
    assert (row[:PROMPT][counts == 0] == 0).all()
    plain = copies_of(model, torch.ones_like(counts), ids)
    assert (wanted - plain).abs().max() > 1e-3, "the counts must make a difference"


def test_removed_tokens_leave_positions_where_they_were(model):
    ids, cache = ids_of(PROMPT + 3), new_cache(model, "thinning")
    counts = counts_of(PROMPT).clamp(max=1)
    step(model, cache, ids[:, :PROMPT])
    cache.remove(counts.nonzero().flatten())
    assert (cache.get_seq_length(), cache.held) == (PROMPT, PROMPT - 3)
    own = torch.stack(
        [step(model, cache, ids[:, place : place + 1]).logits[0, -1] for place in range(PROMPT, PROMPT + 3)]
    )
    torch.testing.assert_close(own, copies_of(model, counts, ids), atol=2e-5, rtol=1e-4)
    assert (cache.get_seq_length(), cache.held) == (PROMPT + 3, PROMPT)


def test_generation_goes_on_behind_a_thinned_cache(model):
    """transformers' own loop slices its inputs and counts positions by the cache's length."""
    ids, cache = ids_of(), new_cache(model, "thinning")
    counts = counts_of(PROMPT - 1).clamp(max=1)
    step(model, cache, ids[:, :-1])
    cache.remove(counts.nonzero().flatten())
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), past_key_values=cache, max_new_tokens=5, do_sample=False
    )
    logits = copies_of(model, counts, output[:, :-1])
    assert logits.argmax(-1).tolist() == output[0, PROMPT:].tolist()
    cache.reset()
    assert cache.get_seq_length() == 0


def test_without_counts_the_model_computes_the_same_bits(model):
    ids = ids_of()
    plain = step(model, DynamicCache(config=model.config), ids).logits
    watch = AttentionWatch(range(3))
    with watching(model, watch):
        watched = step(model, DynamicCache(config=model.config), ids).logits
    assert torch.equal(plain, watched)


def test_everything_is_restored_after_an_error(model):
    before = model.config._attn_implementation
    hooks = [len(layer.self_attn._forward_pre_hooks) for layer in model.model.layers]
    watch = AttentionWatch(range(3))
    with pytest.raises(RuntimeError, match="stop"), watching(model, watch):
        assert model.config._attn_implementation == WATCHED_NAME
        step(model, DynamicCache(config=model.config), ids_of())
        raise RuntimeError("stop")
    assert model.config._attn_implementation == before
    assert [len(layer.self_attn._forward_pre_hooks) for layer in model.model.layers] == hooks
    assert watch._seen == {}


def test_a_band_outside_the_layers(model):
    with (
        pytest.raises(UserError, match=r"layers 2 to 3 are outside the decoder's 0 to 2"),
        watching(model, AttentionWatch(range(2, 4))),
    ):
        pass


def test_eager_attention_is_refused(model):
    model.set_attn_implementation("eager")
    try:
        with (
            pytest.raises(UserError, match=r"attention is 'eager'.*attn_implementation='sdpa'"),
            watching(model, AttentionWatch(range(1))),
        ):
            pass
    finally:
        model.set_attn_implementation("sdpa")

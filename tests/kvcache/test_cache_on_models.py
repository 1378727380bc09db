"""The cache through ``past_key_values`` of unmodified models: equal to an uncompressed cache where nothing is coded."""

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

from longvid_train.errors import UserError
from longvid_train.kvcache.attention import ATTENTION_NAME, attending_on_codes, rotation_of
from longvid_train.kvcache.cache import QuantizedKVCache
from longvid_train.kvcache.policy import CachePolicy
from longvid_train.kvcache.quantizer import cache_shape, uncalibrated
from longvid_train.kvcache.schemes.bias_removed import BiasRemoved
from longvid_train.kvcache.schemes.dynamic_groups import DynamicGroups

NEW_TOKENS = 7

PAGED = CachePolicy(sink_tokens=2, recent_tokens=3, flush_tokens=4)
"""Codes nothing, but puts most tokens of a short prompt in pages."""

FOUR_BITS = CachePolicy(
    keys=DynamicGroups(bits=4, along="tokens", group=4),
    values=DynamicGroups(bits=4, along="channels", group=8),
    sink_tokens=2,
    recent_tokens=3,
    flush_tokens=4,
)


def paged_cache(model, policy=PAGED, **options):
    return QuantizedKVCache(uncalibrated(policy, cache_shape(model.config)), **{"page_tokens": 8, **options})


def prompts(rows=1, length=30, padding=()):
    ids = torch.randint(2, 48, (rows, length), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(ids)
    for row, count in enumerate(padding):
        ids[row, :count], mask[row, :count] = 0, 0
    return ids, mask


def generate(model, ids, mask, cache, **options):
    with torch.no_grad():
        return model.generate(
            ids,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=NEW_TOKENS,
            return_dict_in_generate=True,
            output_logits=True,
            **{"do_sample": False, **options},
        )


def assert_same_generation(model, ids, mask, cache, **options):
    expected = generate(model, ids, mask, DynamicCache(config=model.config), **options)
    with attending_on_codes(model):
        ours = generate(model, ids, mask, cache, **options)
    assert torch.equal(ours.sequences, expected.sequences)
    for step, (own, theirs) in enumerate(zip(ours.logits, expected.logits, strict=True)):
        assert torch.allclose(own, theirs, atol=2e-4, rtol=1e-3), step
    return ours


CASES = {
    "one row": (1, (), {}),
    "left padding": (3, (0, 7, 1), {}),
    "beam search": (2, (0, 5), {"num_beams": 3}),
    "chunked prefill": (1, (), {"prefill_chunk_size": 7}),
    "chunked prefill of one token": (1, (), {"prefill_chunk_size": 1}),
    "chunked prefill, padded": (2, (0, 9), {"prefill_chunk_size": 6}),
    "sampling": (2, (0, 3), {"do_sample": True, "num_return_sequences": 2}),
    "sampled beams": (1, (), {"do_sample": True, "num_beams": 2}),
    "prompt lookup": (1, (), {"prompt_lookup_num_tokens": 3}),
}

GROUPED, EVERY_HEAD = 2, 4
"""Key-value heads under 4 query heads."""


@pytest.mark.parametrize("kv_heads", [GROUPED, EVERY_HEAD], ids=["GQA", "MHA"])
@pytest.mark.parametrize(("family", "case"), [("llama", "left padding"), *(("qwen2", case) for case in CASES)])
def test_generation_is_that_of_an_uncompressed_cache(kv, family, case, kv_heads):
    rows, padding, options = CASES[case]
    model = kv.model(family, kv_heads=kv_heads)
    ids, mask = prompts(rows, padding=padding)
    cache = paged_cache(model)
    if options.get("do_sample"):
        torch.manual_seed(11)
        expected = generate(model, ids, mask, DynamicCache(config=model.config), **options)
        torch.manual_seed(11)
        with attending_on_codes(model):
            ours = generate(model, ids, mask, cache, **options)
        assert torch.equal(ours.sequences, expected.sequences)
    else:
        assert_same_generation(model, ids, mask, cache, **options)
    assert cache.get_seq_length() == 30 + NEW_TOKENS - 1
    assert sum(page.length for page in cache.layers[1].pages) >= cache.get_seq_length() - 3 - 3


def test_an_assistant_s_wrong_guesses_are_taken_back_from_the_cache(kv):
    """Assisted generation crops what it does not accept: the answer is that of the model alone."""
    model, assistant = kv.model(), kv.model(layers=1)
    ids, mask = prompts()
    cache = paged_cache(model)
    expected = generate(model, ids, mask, DynamicCache(config=model.config))
    cropped = []
    crop = cache.crop
    cache.crop = lambda count: cropped.append(count) or crop(count)
    with attending_on_codes(model):
        ours = generate(model, ids, mask, cache, assistant_model=assistant)
    assert torch.equal(ours.sequences, expected.sequences)
    assert cropped


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 1), (6, 2)], ids=["MHA", "MQA", "GQA"])
@pytest.mark.parametrize("head_dim", [80])
def test_groups_of_query_heads_and_head_dims(kv, heads, kv_heads, head_dim):
    model = kv.model(heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    assert_same_generation(model, *prompts(2, padding=(0, 4)), paged_cache(model))


def test_bfloat16_models_keep_their_dtype_and_tokens(kv):
    model = kv.model(dtype=torch.bfloat16)
    ids, mask = prompts()
    expected = generate(model, ids, mask, DynamicCache(config=model.config))
    cache = paged_cache(model)
    with attending_on_codes(model):
        ours = generate(model, ids, mask, cache)
    assert ours.logits[0].dtype == expected.logits[0].dtype
    assert torch.allclose(ours.logits[1], expected.logits[1], atol=0.5, rtol=0.05)
    assert cache.layers[0].pages[0].keys["numbers"].dtype == torch.bfloat16


def test_a_chunk_of_many_queries_is_attended_in_pieces(kv, monkeypatch):
    monkeypatch.setattr("longvid_train.kvcache.layer.QUERY_ROWS", 6)
    model = kv.model()
    assert_same_generation(model, *prompts(2, padding=(0, 5)), paged_cache(model), prefill_chunk_size=11)


def logits_of(model, ids, cache, **inputs):
    with torch.no_grad():
        return model(ids, past_key_values=cache, **inputs).logits


@pytest.mark.parametrize(
    ("removed", "kv_heads"), [*((count, GROUPED) for count in (1, 3, 4, 6, 17, 25)), (6, EVERY_HEAD)]
)
def test_crop_takes_back_the_newest_tokens_only(kv, removed, kv_heads):
    """Recent tokens, whole blocks, parts of a block and most of the prompt; then the cache goes on."""
    model = kv.model(kv_heads=kv_heads)
    ids, _ = prompts(2)
    reference, cache = DynamicCache(config=model.config), paged_cache(model)
    with attending_on_codes(model):
        logits_of(model, ids, cache)
        cache.crop(-removed)
        assert cache.get_seq_length() == 30 - removed
        ours = [logits_of(model, ids[:, :9], cache), logits_of(model, ids[:, 9:10], cache)]
        cache.crop(5)
        assert cache.get_seq_length() == 5
        ours.append(logits_of(model, ids[:, 3:20], cache))
    logits_of(model, ids, reference)
    reference.crop(-removed)
    theirs = [logits_of(model, ids[:, :9], reference), logits_of(model, ids[:, 9:10], reference)]
    reference.crop(5 - reference.get_seq_length())
    theirs.append(logits_of(model, ids[:, 3:20], reference))
    for own, other in zip(ours, theirs, strict=True):
        assert torch.allclose(own, other, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: cache.reorder_cache(torch.tensor([2, 0, 2])),
        lambda cache: cache.batch_select_indices(torch.tensor([1, 2])),
        lambda cache: cache.batch_repeat_interleave(2),
    ],
    ids=["reorder", "select", "repeat"],
)
@pytest.mark.parametrize("kv_heads", [GROUPED, EVERY_HEAD], ids=["GQA", "MHA"])
def test_rows_move_with_everything_that_belongs_to_them(kv, change, kv_heads):
    model = kv.model(kv_heads=kv_heads)
    ids, mask = prompts(3, padding=(0, 7, 1))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    reference, cache = DynamicCache(config=model.config), paged_cache(model)
    given = {"attention_mask": mask, "position_ids": positions}
    logits_of(model, ids, reference, **given)
    change(reference)
    with attending_on_codes(model):
        logits_of(model, ids, cache, **given)
        change(cache)
        rows = {3: [2, 0, 2], 2: [1, 2], 6: [0, 0, 1, 1, 2, 2]}[len(reference.layers[0].keys)]
        more = torch.arange(2, 2 + 5 * len(rows)).view(len(rows), 5) % 46 + 2
        given = {
            "attention_mask": torch.cat([mask[rows], torch.ones_like(more)], dim=1),
            "position_ids": positions[rows, -1:] + torch.arange(1, 6),
        }
        ours = logits_of(model, more, cache, **given)
    assert torch.allclose(ours, logits_of(model, more, reference, **given), atol=2e-4, rtol=1e-3)


def test_a_reset_cache_serves_another_batch(kv):
    model = kv.model()
    cache = paged_cache(model, FOUR_BITS)
    with attending_on_codes(model):
        generate(model, *prompts(3, padding=(4, 0, 0)), cache)
        cache.reset()
        assert cache.get_seq_length() == 0 and cache.used_bytes().coded == 0
        again = generate(model, *prompts(2, length=17), cache)
        fresh = generate(model, *prompts(2, length=17), paged_cache(model, FOUR_BITS))
    assert torch.equal(torch.stack(again.logits), torch.stack(fresh.logits))


@pytest.mark.parametrize("kv_heads", [GROUPED, EVERY_HEAD], ids=["GQA", "MHA"])
def test_a_reset_and_an_offloaded_cache_are_uncompressed_ones_at_16_bits(kv, kv_heads):
    model = kv.model(kv_heads=kv_heads)
    used = paged_cache(model)
    with attending_on_codes(model):
        generate(model, *prompts(3, padding=(4, 0, 0)), used)
    used.reset()
    assert_same_generation(model, *prompts(2, length=17, padding=(0, 3)), used)
    assert_same_generation(model, *prompts(2, padding=(0, 5)), paged_cache(model, offload=True), num_beams=2)


def test_offloading_changes_no_number(kv):
    model = kv.model()
    ids, mask = prompts(2, padding=(0, 5))
    with attending_on_codes(model):
        kept = generate(model, ids, mask, paged_cache(model, FOUR_BITS), num_beams=2)
        away = generate(model, ids, mask, paged_cache(model, FOUR_BITS, offload=True), num_beams=2)
    assert torch.equal(torch.stack(away.logits), torch.stack(kept.logits))


def test_offloading_moves_every_tensor_of_a_layer(kv):
    model = kv.model()
    cache = paged_cache(model, FOUR_BITS)
    with attending_on_codes(model):
        logits_of(model, prompts(2)[0], cache)
    layer = cache.layers[1]
    before = layer.used_bytes()
    layer._move("meta")
    stored = [*layer._recent, *layer._store.pages[0].tensors(), layer._sinks.keys, layer._sinks.values]
    assert {tensor.device.type for tensor in [*stored, layer._sinks.index, layer._padding]} == {"meta"}
    assert layer.used_bytes() == before


def test_ten_flushes_leave_every_code_as_it_was(kv):
    """Old tokens are never coded again: bytes of the first pages stay, and equal coding all at once."""
    model = kv.model()
    ids = torch.randint(2, 48, (2, 58), generator=torch.Generator().manual_seed(1))
    cache, whole = paged_cache(model, FOUR_BITS), paged_cache(model, FOUR_BITS, page_tokens=64)
    with attending_on_codes(model):
        logits_of(model, ids[:, :16], cache)
        first = [tensor.clone() for tensor in cache.layers[0].pages[0].tensors()]
        flushed = sum(page.length for page in cache.layers[0].pages)
        for token in range(16, 58):
            logits_of(model, ids[:, token : token + 1], cache)
        logits_of(model, ids, whole)
    assert sum(page.length for page in cache.layers[0].pages) == flushed + 40
    assert all(map(torch.equal, first, cache.layers[0].pages[0].tensors()))
    step_by_step = torch.cat([page.keys["codes"] for page in cache.layers[0].pages], dim=2)
    assert torch.equal(step_by_step[:, :, 2:], whole.layers[0].pages[0].keys["codes"][:, :, 2:])


@pytest.mark.parametrize("padding", [(0, 0), (0, 6)], ids=["even", "padded"])
def test_a_row_does_not_see_how_its_batch_is_padded(kv, padding):
    """Codes, sinks and positions of a padded row are those of the row alone."""
    policy = CachePolicy(
        keys=DynamicGroups(bits=4, along="channels", group=8),
        values=DynamicGroups(bits=4, along="channels", group=8),
        sink_tokens=3,
        recent_tokens=4,
        flush_tokens=1,
    )
    model = kv.model()
    ids, mask = prompts(2, padding=padding)
    alone = ids[1:, padding[1] :]
    with attending_on_codes(model):
        batch = generate(model, ids, mask, paged_cache(model, policy))
        single = generate(model, alone, torch.ones_like(alone), paged_cache(model, policy))
    assert torch.equal(batch.sequences[1, -NEW_TOKENS:], single.sequences[0, -NEW_TOKENS:])
    assert torch.allclose(torch.stack(batch.logits)[:, 1], torch.stack(single.logits)[:, 0], atol=2e-4, rtol=1e-3)


def test_sinks_are_read_in_full_precision(kv):
    """With one bit a number, and all tokens but 8 recent ones sinks, nothing is lost; without sinks it is."""
    coarse = DynamicGroups(bits=1, along="channels", group=None)
    policy = CachePolicy(keys=coarse, values=coarse, sink_tokens=60, recent_tokens=2, flush_tokens=1)
    model = kv.model()
    ids, mask = prompts(2, padding=(0, 5))
    assert_same_generation(model, ids, mask, paged_cache(model, policy))
    expected = generate(model, ids, mask, DynamicCache(config=model.config))
    with attending_on_codes(model):
        ours = generate(model, ids, mask, paged_cache(model, replace(policy, sink_tokens=0)))
    assert not torch.allclose(ours.logits[1], expected.logits[1], atol=1e-2)


def test_protected_layers_keep_numbers(kv):
    model = kv.model(layers=3)
    cache = paged_cache(model, replace(FOUR_BITS, protected_layers=(0, -1)))
    with attending_on_codes(model):
        logits_of(model, prompts()[0], cache)
    assert [sorted(layer.pages[0].keys) for layer in cache.layers] == [
        ["numbers"],
        ["codes", "offset", "scale"],
        ["numbers"],
    ]


def test_protected_layers_lose_nothing(kv):
    """With one bit a number, a cache whose layers are all protected is an uncompressed one; with one less it is not."""
    coarse = DynamicGroups(bits=1, along="channels", group=None)
    policy = CachePolicy(keys=coarse, values=coarse, sink_tokens=0, recent_tokens=2, protected_layers=(0, -1))
    model = kv.model()
    ids, mask = prompts(2, padding=(0, 5))
    assert_same_generation(model, ids, mask, paged_cache(model, policy))
    expected = generate(model, ids, mask, DynamicCache(config=model.config))
    with attending_on_codes(model):
        ours = generate(model, ids, mask, paged_cache(model, replace(policy, protected_layers=(0,), flush_tokens=1)))
    assert not torch.allclose(ours.logits[1], expected.logits[1], atol=1e-2)


@pytest.mark.parametrize("chunk", [5, 16])
def test_a_prompt_in_chunks_is_never_whole_in_any_layer(kv, chunk):
    """When a layer takes a chunk, none has more than sinks, the recent window, a block and the chunk as they are."""
    model = kv.model()
    cache = paged_cache(model, FOUR_BITS)
    token_bytes = 2 * 2 * 16 * 4
    most = (2 + 3 + 4 + chunk) * token_bytes + 2 * 8
    seen = []
    for layer in cache.layers:
        update = layer.update

        def watched(*args, update=update, **kwargs):
            result = update(*args, **kwargs)
            seen.append(max(one.used_bytes().exact for one in cache.layers if one.is_initialized))
            return result

        layer.update = watched
    ids, mask = prompts(length=64)
    with attending_on_codes(model):
        generate(model, ids, mask, cache, prefill_chunk_size=chunk)
    assert len(seen) > 2 * 64 // chunk
    assert max(seen) <= most < 64 * token_bytes


def test_the_model_is_given_back_as_it_was(kv):
    model = kv.model()
    before = model.config._attn_implementation
    with pytest.raises(ZeroDivisionError), attending_on_codes(model):
        assert model.model.config._attn_implementation == ATTENTION_NAME
        raise ZeroDivisionError
    assert model.config._attn_implementation == before != ATTENTION_NAME
    assert not model.model._forward_pre_hooks


def test_other_caches_work_as_ever_inside_the_block(kv):
    model = kv.model()
    ids, mask = prompts(2, padding=(0, 5))
    expected = generate(model, ids, mask, DynamicCache(config=model.config))
    with attending_on_codes(model):
        ours = generate(model, ids, mask, DynamicCache(config=model.config))
    assert torch.equal(ours.sequences, expected.sequences)


def test_a_cache_outside_the_block_is_refused_not_misread(kv):
    model = kv.model()
    cache = paged_cache(model)
    logits_of(model, prompts()[0], cache)
    with pytest.raises(UserError, match=r"run it inside attending_on_codes\(model\)"):
        logits_of(model, torch.tensor([[3]]), cache)
    with pytest.raises(UserError, match=r"run it inside attending_on_codes\(model\)"):
        cache.reorder_cache(torch.tensor([0]))


def test_another_model_s_quantizer_is_refused_naming_both(kv):
    model, other = kv.model(), kv.model(layers=3)
    both = "for 3 layers of 2 heads of 16, the model has 2 layers of 2 heads of 16"
    with pytest.raises(UserError, match=both), attending_on_codes(model):
        logits_of(model, prompts()[0], paged_cache(other))


def test_another_rotation_is_refused_naming_both(kv):
    model = kv.model(rope_parameters={"rope_type": "default", "rope_theta": 5000.0})
    quantizer = uncalibrated(FOUR_BITS, cache_shape(model.config), kv.rotation())
    both = r"rotate differently \(inverse frequency 7: 0\.00031622779 and 0\.00057996425"
    with pytest.raises(UserError, match=both), attending_on_codes(model):
        logits_of(model, prompts()[0], QuantizedKVCache(quantizer))
    with attending_on_codes(model):
        matching = uncalibrated(FOUR_BITS, cache_shape(model.config), rotation_of(model))
        logits_of(model, prompts()[0], QuantizedKVCache(matching))


@pytest.mark.parametrize("type_", ["dynamic", "longrope"])
def test_rotations_that_change_are_refused(kv, type_):
    model = kv.model()
    model.model.rotary_emb.rope_type = type_
    with pytest.raises(UserError, match=f"of type '{type_}' change with the input"):
        rotation_of(model)


def test_rounded_frequencies_are_refused(kv):
    with pytest.raises(UserError, match=r"were rounded to torch.float16; load the model with dtype=, not .half\(\)"):
        rotation_of(kv.model().half())


def test_sliding_windows_are_refused(kv):
    model = kv.model(use_sliding_window=True, sliding_window=8, max_window_layers=1)
    kinds = "qwen2 has layers of full_attention, sliding_attention"
    with pytest.raises(UserError, match=kinds), attending_on_codes(model):
        pass


def test_static_schemes_need_a_calibration(kv):
    with pytest.raises(UserError, match="scheme 'bias_removed' has static parameters"):
        uncalibrated(CachePolicy(keys=BiasRemoved()), cache_shape(kv.model().config))

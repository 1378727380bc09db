"""Calibrated caches on a model: what attention computes, and that no whole cache is ever decoded."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache

from longvid_train.errors import UserError
from longvid_train.kvcache.attention import attending_on_codes, rotation_of
from longvid_train.kvcache.cache import QuantizedKVCache
from longvid_train.kvcache.codec import Places
from longvid_train.kvcache.fitting import fit_quantizer
from longvid_train.kvcache.layer import LayerSettings, QuantizedLayer
from longvid_train.kvcache.observing import observing
from longvid_train.kvcache.policy import CachePolicy
from longvid_train.kvcache.presets import PRESETS
from longvid_train.kvcache.quantizer import CacheShape, cache_shape, uncalibrated
from longvid_train.kvcache.schemes.dynamic_groups import DynamicGroups
from longvid_train.kvcache.statistics import Statistics

PROMPT = 200


@pytest.fixture(scope="module")
def model(shared_kv):
    return shared_kv.model(heads=4, kv_heads=2, head_dim=32)


@pytest.fixture(scope="module")
def statistics(model):
    made = Statistics(cache_shape(model.config), sample_tokens=512)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad(), observing(model, made):
        for number in range(4):
            ids = torch.randint(2, 48, (1, PROMPT), generator=generator)
            made.begin([number], torch.ones_like(ids), torch.arange(PROMPT)[None] % 3 == 0)
            model(ids, use_cache=False, logits_to_keep=1)
    return made


def cache_of(model, statistics, name, *, page_tokens=64, **changes):
    policy = replace(PRESETS[name], **{"recent_tokens": 16, "flush_tokens": 8, **changes})
    return QuantizedKVCache(fit_quantizer(policy, statistics, rotation_of(model)), page_tokens=page_tokens)


def ids_of(length=PROMPT, rows=1):
    return torch.randint(2, 48, (rows, length), generator=torch.Generator().manual_seed(7))


def run(model, cache, ids, **given):
    with torch.no_grad():
        return model(ids, past_key_values=cache, **given).logits


class LargestTensors(TorchDispatchMode):
    """Notes the most elements that any operation in the block returned, by kind of number."""

    def __init__(self):
        super().__init__()
        self.floats, self.others = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)}
        for leaf in tree_leaves(result):
            if not isinstance(leaf, torch.Tensor) or leaf.untyped_storage().data_ptr() in given:
                continue  # a view of what was there is no new memory
            if leaf.is_floating_point():
                self.floats = max(self.floats, leaf.numel())
            else:
                self.others = max(self.others, leaf.numel())
        return result


@pytest.mark.parametrize("name", ["static2", "bias2", "lloyd2", "transform2", "k4v2", "kivi_g32", "full"])
def test_a_decoding_step_makes_nothing_larger_than_a_page(model, statistics, name):
    """One row, 2 heads of 32: a page of 64 tokens is 4,096 numbers, the cache 12,800."""
    cache = cache_of(model, statistics, name)
    with attending_on_codes(model):
        run(model, cache, ids_of())
        with LargestTensors() as largest:
            run(model, cache, torch.tensor([[5]]))
    page = 2 * 64 * 32
    assert largest.floats <= page
    assert largest.others <= page
    assert 2 * cache.layers[0].pages[0].length * 32 == page


def test_the_watch_sees_a_whole_cache(model):
    cache = DynamicCache(config=model.config)
    run(model, cache, ids_of())
    with LargestTensors() as largest:
        run(model, cache, torch.tensor([[5]]))
    assert largest.floats >= 2 * PROMPT * 32


@pytest.mark.parametrize("name", ["static2", "lloyd2", "transform2", "kivi_g32"])
def test_the_prompt_is_coded_layer_by_layer(model, statistics, name):
    """When layer 1 takes its keys, layer 0 holds codes and its recent window only."""
    cache = cache_of(model, statistics, name)
    first, second = cache.layers
    seen = []
    update = second.update

    def watched(*args, **kwargs):
        seen.append(first.used_bytes())
        return update(*args, **kwargs)

    second.update = watched
    with attending_on_codes(model):
        run(model, cache, ids_of())
    block = cache.quantizer.policy.block_tokens
    token_bytes = 2 * 2 * 32 * 4
    assert seen[0].coded_tokens == (PROMPT - 16) // block * block
    assert seen[0].exact <= (16 + block + 4) * token_bytes + 4 * 8
    assert seen[0].coded < 0.12 * seen[0].coded_tokens * token_bytes


@pytest.mark.parametrize(
    ("name", "bits"),
    [("static2", 2.0), ("static3", 3.0), ("lloyd2", 2.5), ("transform2", 2.25), ("bias2", 2.0), ("kivi_g32", 3.0)],
)
def test_bits_are_counted_from_allocated_bytes(model, statistics, name, bits):
    """At a head dim of 32: the gain of lloyd2 is 16 / 32 bits a number, that of transform2 8 / 32."""
    cache = cache_of(model, statistics, name)
    with attending_on_codes(model):
        run(model, cache, ids_of(rows=2))
        run(model, cache, torch.tensor([[5], [6]]))
    used = cache.used_bytes()
    assert used.bits_per_number == bits
    pages = [page for layer in cache.layers for page in layer.pages]
    stored = sum(tensor.untyped_storage().nbytes() for page in pages for tensor in page.tensors())
    assert used.coded == stored
    assert used.total == used.coded + used.exact + used.rows + used.parameters
    cache.crop(-100)
    assert cache.used_bytes().coded < 0.7 * used.coded


def reference_attention(layer, query, keys, values, decoded):
    """Softmax attention in float64 over recent and sink tokens as they are and the others as decoded."""
    codes_until = decoded[0].shape[2]
    mixed = []
    for exact, coarse in zip((keys, values), decoded, strict=True):
        full = exact.double().clone()
        full[:, :, 4:codes_until] = coarse[:, :, 4:].double()
        mixed.append(full.repeat_interleave(query.shape[1] // keys.shape[1], dim=1))
    scores = query.double() @ mixed[0].transpose(-1, -2) * 0.125
    return scores.softmax(-1) @ mixed[1]


@pytest.mark.parametrize("separate", [False, True], ids=["shared", "by_kind"])
@pytest.mark.parametrize("name", ["static2", "bias2", "lloyd2", "transform2", "k4v2_static"])
def test_a_layer_attends_to_what_its_codes_mean(model, statistics, name, separate):
    policy = replace(PRESETS[name], recent_tokens=16, flush_tokens=8, separate_visual=separate)
    quantizer = fit_quantizer(policy, statistics, rotation_of(model))
    settings = LayerSettings(sink_tokens=4, recent_tokens=16, block_tokens=8, needs_kinds=separate, page_tokens=48)
    layer = QuantizedLayer(*quantizer.codecs(0), settings)
    kinds = (torch.arange(121)[None] % 3 == 0).to(torch.uint8) if separate else None
    layer.begin(kinds=kinds, padding=None, first_position=None)
    generator = torch.Generator().manual_seed(3)
    keys, values = (torch.randn(1, 2, 121, 32, generator=generator) * 2 for _ in range(2))
    layer.update(keys[:, :, :120], values[:, :, :120])
    layer.settle()
    layer.update(keys[:, :, 120:], values[:, :, 120:])
    query = torch.randn(1, 4, 1, 32, generator=generator)
    ours = layer.attend(query, None, 0.125)
    decoded, start = [[], []], 0
    for page in layer.pages:
        stop = start + page.length
        places = Places(torch.arange(start, stop)[None], None if kinds is None else kinds[:, start:stop])
        for side, codec, coded in zip(decoded, quantizer.codecs(0), (page.keys, page.values), strict=True):
            side.append(codec.decode(coded, places))
        start = stop
    assert start == 104
    expected = reference_attention(layer, query, keys, values, [torch.cat(side, dim=2) for side in decoded])
    assert torch.allclose(ours.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", PRESETS)
def test_ten_flushes_code_no_token_twice(model, statistics, name):
    """Token by token through ten flushes: what was coded first stays, and all is as if coded at once."""
    policy = replace(PRESETS[name], recent_tokens=16, flush_tokens=8)
    quantizer = fit_quantizer(policy, statistics, rotation_of(model))
    block = policy.block_tokens
    settings = LayerSettings(sink_tokens=4, recent_tokens=16, block_tokens=block, needs_kinds=False, page_tokens=block)
    stepwise, at_once = (QuantizedLayer(*quantizer.codecs(0), settings) for _ in range(2))
    keys, values = (torch.randn(1, 2, 16 + 11 * block, 32, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    stepwise.update(keys[:, :, : 16 + block], values[:, :, : 16 + block])
    stepwise.settle()
    first = [tensor.clone() for tensor in stepwise.pages[0].tensors()]
    for start in range(16 + block, 16 + 11 * block, block):
        stepwise.update(keys[:, :, start : start + block], values[:, :, start : start + block])
        stepwise.settle()
    at_once.update(keys, values)
    at_once.settle()
    assert len(stepwise.pages) == len(at_once.pages) == 11
    assert all(map(torch.equal, first, stepwise.pages[0].tensors()))
    for own, theirs in zip(stepwise.pages, at_once.pages, strict=True):
        assert all(map(torch.equal, own.tensors(), theirs.tensors()))


@pytest.mark.parametrize("name", ["bias2", "lloyd2", "transform2"])
def test_positions_of_padded_rows_are_their_own(model, statistics, name):
    """Keys coded before rotation: a row padded on the left continues as the row alone does."""
    ids = ids_of(60, rows=2)
    mask = torch.ones_like(ids)
    ids[1, :9], mask[1, :9] = 0, 0
    options = {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    with torch.no_grad(), attending_on_codes(model):
        both = model.generate(
            ids, attention_mask=mask, past_key_values=cache_of(model, statistics, name, flush_tokens=1), **options
        )
        alone = model.generate(
            ids[1:, 9:], past_key_values=cache_of(model, statistics, name, flush_tokens=1), **options
        )
    assert torch.allclose(torch.stack(both.logits)[:, 1], torch.stack(alone.logits)[:, 0], atol=5e-3)


def test_eight_bits_change_little_and_two_bits_more(model, statistics):
    ids = ids_of(160)
    reference = DynamicCache(config=model.config)
    run(model, reference, ids[:, :120])
    expected = run(model, reference, ids[:, 120:]).log_softmax(-1)
    divergence = {}
    for name in ("static8", "static4", "static2"):
        cache = cache_of(model, statistics, name)
        with attending_on_codes(model):
            run(model, cache, ids[:, :120])
            found = run(model, cache, ids[:, 120:]).log_softmax(-1)
        divergence[name] = float((expected.exp() * (expected - found)).sum(-1).mean())
    assert 0 < divergence["static8"] < 0.1 < divergence["static4"] < divergence["static2"]


def test_kinds_follow_beams_and_reach_the_codes(model, statistics):
    """Described for one row, three beams: the parameters of visual tokens are used where they were described."""
    cache = cache_of(model, statistics, "static2", separate_visual=True)
    visual = torch.arange(60)[None] % 3 == 0
    cache.describe(visual=visual)
    with torch.no_grad(), attending_on_codes(model):
        model.generate(ids_of(60), past_key_values=cache, num_beams=3, max_new_tokens=5, do_sample=False)
    kinds = cache.layers[1]._kinds
    assert kinds.shape == (3, 64)
    assert torch.equal(kinds[:, :60].bool(), visual.expand(3, -1)) and not kinds[:, 60:].any()


def test_mistakes_of_use_are_named(model, statistics):
    separate = cache_of(model, statistics, "static2", separate_visual=True)
    with pytest.raises(UserError, match=r"call cache.describe\(visual=...\) first"), attending_on_codes(model):
        run(model, separate, ids_of(20))
    cache = cache_of(model, statistics, "static2")
    with attending_on_codes(model):
        run(model, cache, ids_of(20))
        with pytest.raises(UserError, match="holds 20 tokens; describe the prompt before it is read"):
            cache.describe(visual=torch.ones(1, 20))
    rotated = cache_of(model, statistics, "lloyd2")
    with pytest.raises(UserError, match="need positions that rise by one"), attending_on_codes(model):
        run(model, rotated, ids_of(20), position_ids=torch.arange(20)[None] * 2)
    described = cache_of(model, statistics, "static2", separate_visual=True)
    described.describe(visual=torch.zeros(2, 20, dtype=torch.bool))
    with pytest.raises(UserError, match="described for 2 rows and gets 3"), attending_on_codes(model):
        run(model, described, ids_of(20, rows=3))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_generates_and_codes_what_leaves_the_window(model, statistics, name):
    cache = cache_of(model, statistics, name, flush_tokens=16)
    with torch.no_grad(), attending_on_codes(model):
        model.generate(ids_of(180), past_key_values=cache, max_new_tokens=4, do_sample=False)
    block = cache.quantizer.policy.block_tokens
    assert sum(page.length for page in cache.layers[0].pages) == (183 - 16) // block * block


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128])
@pytest.mark.parametrize("bits", [2, 3])
def test_head_dims_of_public_models_are_coded(head_dim, bits):
    policy = CachePolicy(keys=DynamicGroups(bits=bits, along="tokens", group=32), recent_tokens=0)
    cache = QuantizedKVCache(uncalibrated(policy, CacheShape(layers=1, heads=2, head_dim=head_dim)))
    layer = cache.layers[0]
    keys = torch.randn(1, 2, 64, head_dim)
    layer.update(keys, keys)
    layer.settle()
    assert layer.pages[0].keys["codes"].shape == (1, 2, 64, head_dim * bits // 8)


def test_a_prompt_that_goes_on_differently_is_described_again(model, statistics):
    """Cropped and continued with visual tokens: the cache is that of the whole prompt, described once."""
    ids, visual = ids_of(160), torch.arange(160)[None] % 3 == 0
    caches = [cache_of(model, statistics, "static2", separate_visual=True) for _ in range(2)]
    with attending_on_codes(model):
        caches[0].describe(visual=visual)
        run(model, caches[0], ids[:, :120])
        wanted = run(model, caches[0], ids[:, 120:])
        first = visual.clone()
        first[:, 120:] = False
        caches[1].describe(visual=first[:, :140])
        run(model, caches[1], ids[:, :120])
        caches[1].describe(visual=visual)
        assert torch.equal(run(model, caches[1], ids[:, 120:]), wanted)
        with pytest.raises(UserError, match="describe the prompt before it is read"):
            caches[1].describe(visual=~visual)
    assert torch.equal(caches[0].layers[0]._kinds, caches[1].layers[0]._kinds)

"""The kernels in Triton's interpreter against attention page by page in torch, in float32.

Not collected by itself: the interpreter is chosen when Triton is first imported, so `test_split_kv_interpreted` runs
this file in a process of its own.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longvid_train.errors import UserError
from longvid_train.kvcache.attention import attending_on_codes, rotation_of
from longvid_train.kvcache.cache import QuantizedKVCache
from longvid_train.kvcache.fitting import fit_quantizer
from longvid_train.kvcache.kernels.choice import refusal_of
from longvid_train.kvcache.kernels.decoder import PageDecoder
from longvid_train.kvcache.kernels.sides import side_of
from longvid_train.kvcache.layer import LayerSettings, QuantizedLayer
from longvid_train.kvcache.observing import observing
from longvid_train.kvcache.policy import CachePolicy
from longvid_train.kvcache.presets import PRESETS
from longvid_train.kvcache.quantizer import cache_shape
from longvid_train.kvcache.schemes.dynamic_groups import DynamicGroups
from longvid_train.kvcache.schemes.lloyd_max import LloydMax
from longvid_train.kvcache.schemes.static_channel import StaticChannel
from longvid_train.kvcache.statistics import Statistics

READ = {
    "static8",
    "static4",
    "static3",
    "static2",
    "bias2",
    "lloyd2",
    "k4v2",
    "k4v2_static",
    "kivi_g32",
    "kivi_g128",
    "intp2",
    "intp2_minmax",
}
"""Presets the kernels read."""
SLOW = {"static8", "static4", "k4v2_static", "kivi_g128", "intp2_minmax"}
"""Those whose paths through the kernels others take too."""


def codecs_of(kv, policy, heads, head_dim, scaling=1.0):
    rotation, where = kv.rotation(head_dim, scaling=scaling), kv.places(1, 80)
    fitted = []
    for seed, scheme in enumerate((policy.keys, policy.values)):
        sample = kv.sample(kv.heavy(1, heads, 80, head_dim, seed=seed), where)
        parameters = scheme.fit(sample, separate=False, rotation=rotation)
        fitted.append(scheme.codec(parameters, rotation=rotation))
    return fitted


def filled_layer(kv, policy, *, heads, head_dim, tokens, padding, page_tokens, sinks=2, scaling=1.0):
    """A layer with ``tokens`` settled tokens, the last of them recent, and one pending."""
    keys, values = codecs_of(kv, policy, heads, head_dim, scaling)
    shared = LayerSettings(
        sink_tokens=sinks,
        recent_tokens=1,
        block_tokens=policy.block_tokens,
        needs_kinds=False,
        page_tokens=page_tokens,
    )
    layer = QuantizedLayer(keys, values, shared)
    before = torch.tensor(padding)
    layer.begin(kinds=None, padding=before, first_position=-before)
    made = [kv.heavy(len(padding), heads, tokens + 1, head_dim, seed=7 + seed) for seed in range(2)]
    layer.update(*(x[:, :, :tokens] for x in made))
    layer.settle()
    layer.update(*(x[:, :, tokens:] for x in made))
    return layer


def compare(layer, rows, mask, queries, parts=None):
    """The kernels' peak, mass and result of all pages, and torch's."""
    expected, start = None, 0
    for page in layer.pages:
        part = layer._attend_page(rows, mask, page, start)
        expected = part if expected is None else expected.joined(part)
        start += page.length
    heads, head_dim = rows.shape[1], rows.shape[3]
    sides = [side_of(codec, heads, head_dim) for codec in (layer._key_codec, layer._value_codec)]
    decoder = PageDecoder(*sides, heads=heads, head_dim=head_dim, exact=True, parts=parts)
    found = decoder.attend(
        rows,
        layer.pages,
        queries=queries,
        mask=mask,
        first_position=layer._first_position,
        padding=layer._padding,
        sink_tokens=layer._settings.sink_tokens,
    )
    torch.testing.assert_close(found.peak, expected.peak, atol=2e-5, rtol=2e-6)
    torch.testing.assert_close(found.mass, expected.mass, atol=0, rtol=3e-5)
    torch.testing.assert_close(found.result(), expected.result(), atol=3e-5, rtol=3e-5)
    return found


def rows_of(batch, heads, count, head_dim, seed=3):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(batch, heads, count, head_dim, generator=draw) * 0.3 * head_dim**-0.5


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in sorted(READ)]
)
def test_every_preset_on_padded_rows(kv, name):
    """Two pages, of which the second is not full, and a mask over each row's padding."""
    head_dim = {"static2": 128, "static3": 80, "lloyd2": 80, "bias2": 96}.get(name, 64)
    block = PRESETS[name].block_tokens
    layer = filled_layer(
        kv, PRESETS[name], heads=2, head_dim=head_dim, tokens=block + 101, padding=[0, 9], page_tokens=block + 64
    )
    mask = torch.ones(2, 1, 1, block + 102, dtype=torch.bool)
    mask[1, :, :, :9] = False
    compare(layer, rows_of(2, 2, 3, head_dim), mask, 1)


@pytest.mark.parametrize("name", sorted(READ | {"full"}))
def test_presets_are_read_or_refused_in_words(kv, name):
    keys, values = codecs_of(kv, PRESETS[name], 2, 64)
    refusal = refusal_of(keys, values, heads=2, head_dim=64)
    assert refusal is None if name in READ else "keys: FullPrecisionCodec stores no codes" in refusal


@given(data=st.data())
@settings(max_examples=5, deadline=None)
def test_shapes_bits_masks_and_parts(shared_kv, data):
    """Rows, heads, groups, queries, head dims, page sizes, parts of pages, bits of either side, kinds of mask."""
    draw = data.draw
    head_dim = draw(st.sampled_from([64, 80, 96, 128]), label="head_dim")
    heads, group, queries = (draw(st.integers(1, most), label=what) for what, most in (("H", 2), ("G", 4), ("Q", 2)))
    bits = st.sampled_from([2, 3, 4, 8])
    uneven = LloydMax(
        bits=draw(st.sampled_from([2, 3, 4])), gain=draw(st.booleans()), rotary=draw(st.sampled_from(["pre", "post"]))
    )
    even = StaticChannel(bits=draw(bits), search="minmax")
    grouped = DynamicGroups(bits=draw(st.sampled_from([2, 4])), along="channels", group=16)
    policy = CachePolicy(
        keys=draw(st.sampled_from([uneven, even, grouped]), label="keys"),
        values=draw(st.sampled_from([LloydMax(bits=2), even, grouped]), label="values"),
        flush_tokens=draw(st.sampled_from([1, 16])),
    )
    padding = draw(st.sampled_from([[0], [5], [0, 30]]), label="padding")
    tokens = draw(st.integers(40, 150), label="tokens")
    page_tokens = draw(st.sampled_from([48, 64, 128, 1024]), label="page_tokens")
    layer = filled_layer(
        shared_kv,
        policy,
        heads=heads,
        head_dim=head_dim,
        tokens=tokens,
        padding=padding,
        page_tokens=page_tokens,
        sinks=draw(st.sampled_from([0, 4])),
        scaling=draw(st.sampled_from([1.0, 1.2])),
    )
    mask = torch.rand(len(padding), 1, queries, tokens + 1, generator=torch.Generator().manual_seed(1)) > 0.3
    kind = draw(st.sampled_from(["none", "bytes", "numbers"]), label="mask")
    if kind == "numbers":
        mask = torch.where(mask, 0.7, -torch.inf)
    rows = rows_of(len(padding), heads, group * queries, head_dim)
    compare(layer, rows, None if kind == "none" else mask, queries, parts=draw(st.sampled_from([None, 1, 2, 3])))


@pytest.mark.parametrize("group", [16, 48, 128])
def test_groups_of_tokens_of_any_multiple_of_16(kv, group):
    policy = CachePolicy(
        keys=DynamicGroups(bits=2, along="tokens", group=group),
        values=DynamicGroups(bits=2, along="channels", group=32),
    )
    layer = filled_layer(kv, policy, heads=2, head_dim=64, tokens=2 * group + 1, padding=[3], page_tokens=2 * group)
    layer.settle()
    layer.crop(2 * group - 5)
    assert layer.pages[-1].length % group
    layer.update(*(kv.heavy(1, 2, 1, 64, seed=seed) for seed in (1, 2)))
    compare(layer, rows_of(1, 2, 2, 64), None, 1)


def test_more_pieces_than_are_merged_at_once(kv, monkeypatch):
    """Two whole rounds of the merge and a part of one; 4 at once in place of 32, for the interpreter is slow."""
    monkeypatch.setattr("longvid_train.kvcache.kernels.decoder.MERGED_PIECES", 4)
    layer = filled_layer(kv, PRESETS["static2"], heads=1, head_dim=64, tokens=289, padding=[0], page_tokens=32)
    assert len(layer.pages) == 9
    compare(layer, rows_of(1, 1, 1, 64), None, 1)


def test_rows_that_see_nothing_weigh_nothing(kv):
    layer = filled_layer(kv, PRESETS["static4"], heads=1, head_dim=64, tokens=97, padding=[0, 0], page_tokens=64)
    mask = torch.ones(2, 1, 1, 98, dtype=torch.bool)
    mask[1, :, :, :97] = False
    found = compare(layer, rows_of(2, 1, 2, 64), mask, 1)
    assert found.mass[1].eq(0).all() and found.mixed[1].eq(0).all() and found.peak[1].eq(-torch.inf).all()
    assert found.mass[0].gt(0).all()


def test_far_positions_turn_keys_within_the_rounding_of_their_angles(kv):
    """At position 50,000 an angle's float32 product is off by up to 2e-3 rad, in torch and in the model alike."""
    policy = replace(PRESETS["lloyd2"], sink_tokens=0)
    layer = filled_layer(kv, policy, heads=1, head_dim=64, tokens=97, padding=[-50_000], page_tokens=64, sinks=0)
    rows = rows_of(1, 1, 2, 64)
    expected = torch.cat(
        [
            layer._key_codec.scores(rows, page.keys, layer._places(64 * number, 64 * number + page.length))
            for number, page in enumerate(layer.pages)
        ],
        -1,
    )
    sides = [side_of(codec, 1, 64) for codec in (layer._key_codec, layer._value_codec)]
    found = PageDecoder(*sides, heads=1, head_dim=64, exact=True).attend(
        rows,
        layer.pages,
        queries=1,
        mask=None,
        first_position=layer._first_position,
        padding=torch.zeros(1, dtype=torch.int64),
        sink_tokens=0,
    )
    spread = expected.amax(-1) - expected.amin(-1)
    assert ((found.peak[..., 0] - expected.amax(-1)).abs() < 4e-3 * spread).all()


@pytest.fixture(scope="module")
def model_and_statistics(shared_kv):
    model = shared_kv.model(heads=4, kv_heads=2, head_dim=32, layers=1)
    statistics = Statistics(cache_shape(model.config), sample_tokens=128)
    ids = torch.randint(2, 48, (1, 150), generator=torch.Generator().manual_seed(2))
    with torch.no_grad(), observing(model, statistics):
        statistics.begin([0], torch.ones_like(ids))
        model(ids, use_cache=False, logits_to_keep=1)
    return model, statistics


def generated(model, cache, **options):
    ids = torch.randint(2, 48, (2, 70), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(ids)
    mask[1, :11] = 0
    with attending_on_codes(model), torch.no_grad():
        return model.generate(
            ids,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=4,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
            **options,
        )


@pytest.mark.parametrize(
    ("name", "options"),
    [("kivi_g32", {}), pytest.param("lloyd2", {"num_beams": 2}, marks=pytest.mark.slow)],
)
def test_models_generate_with_the_kernels_what_they_generate_with_torch(model_and_statistics, name, options):
    """Flushes, beams and padding: the page table follows every change of the pages."""
    model, statistics = model_and_statistics
    policy = replace(PRESETS[name], recent_tokens=8, flush_tokens=2)
    quantizer = fit_quantizer(policy, statistics, rotation_of(model))
    expected, found = (
        generated(model, QuantizedKVCache(quantizer, page_tokens=32, decoding=decoding), **options)
        for decoding in ("torch", "triton")
    )
    assert torch.equal(found.sequences, expected.sequences)
    for own, theirs in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(own, theirs, atol=2e-3, rtol=1e-3)


def test_what_the_kernels_cannot_read_is_refused_when_they_are_asked_for(model_and_statistics):
    model, statistics = model_and_statistics
    cache = QuantizedKVCache(fit_quantizer(PRESETS["full"], statistics, rotation_of(model)), decoding="triton")
    with pytest.raises(UserError, match="decoding: triton cannot read this cache: keys: FullPrecisionCodec stores no"):
        generated(model, cache)

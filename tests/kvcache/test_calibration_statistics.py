"""Statistics: what is kept, exact merging, and quantizers fitted to them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longvid_train.errors import UserError
from longvid_train.kvcache.attention import rotation_of
from longvid_train.kvcache.fitting import fit_quantizer
from longvid_train.kvcache.observing import observing
from longvid_train.kvcache.policy import CachePolicy
from longvid_train.kvcache.presets import PRESETS
from longvid_train.kvcache.quantizer import CacheShape, cache_shape
from longvid_train.kvcache.schemes.static_channel import StaticChannel
from longvid_train.kvcache.statistics import Statistics

SHAPE = CacheShape(layers=2, heads=2, head_dim=4)


def row(number, length=20):
    """Query, keys and values of one calibration sample, ``(1, H, S, D)``."""
    generator = torch.Generator().manual_seed(number)
    return [torch.randn(1, heads, length, 4, generator=generator) for heads in (4, 2, 2)]


def observe_rows(numbers, **options):
    statistics = Statistics(SHAPE, **{"sample_tokens": 64, "skip_tokens": 2, **options})
    for number in numbers:
        visual = torch.arange(20)[None] % 4 == number % 4
        statistics.begin([number], torch.ones(1, 20), visual)
        for layer in range(SHAPE.layers):
            query, keys, values = row(number + 100 * layer)
            statistics.observe(layer, query, keys, values)
    return statistics


def assert_same_state(first, second):
    own, theirs = first.state(), second.state()
    assert own.keys() == theirs.keys()
    for name in own:
        assert torch.equal(own[name], theirs[name]), name


def test_extremes_and_counts_are_of_every_token_but_the_skipped():
    statistics = observe_rows(range(8))
    keys, values = statistics.layer_samples(1)
    for sample, place in ((keys, 1), (values, 2)):
        every = torch.stack([row(number + 100)[place][0, :, 2:] for number in range(8)])
        visual = torch.stack([torch.arange(2, 20) % 4 == number % 4 for number in range(8)])
        tokens = every.transpose(1, 2)
        for kind in (0, 1):
            chosen = tokens[visual == bool(kind)]
            assert torch.equal(sample.low[kind], chosen.amin(0))
            assert torch.equal(sample.high[kind], chosen.amax(0))
    assert statistics.tokens.tolist() == [int((~visual).sum()), int(visual.sum())]
    assert int(statistics.tokens.sum()) == 8 * 18


def test_the_sample_is_of_real_tokens_with_their_own_places_and_kinds():
    statistics = observe_rows(range(8))
    keys, values = statistics.layer_samples(0)
    assert keys.vectors.shape == (64, 2, 4)
    found = set()
    for vector, value, position, kind in zip(keys.vectors, values.vectors, keys.positions, keys.kinds, strict=True):
        where = [n for n in range(8) if torch.equal(row(n)[1][0, :, position], vector)]
        assert len(where) == 1 and position >= 2
        assert torch.equal(row(where[0])[2][0, :, position], value)
        assert kind == (position % 4 == where[0] % 4)
        found.add((where[0], int(position)))
    assert len(found) == 64


def test_weights_are_the_mean_square_of_the_queries_of_a_group():
    statistics = observe_rows(range(4), sample_tokens=72)
    keys, values = statistics.layer_samples(0)
    queries = torch.stack([row(number)[0][0, :, 2:] for number in range(4)]).double()
    expected = queries.view(4, 2, 2, 18, 4).square().mean(dim=(0, 2, 3))
    assert torch.allclose(keys.weights, expected, rtol=1e-6)
    assert torch.equal(values.weights, torch.ones(2, 4, dtype=torch.float64))


@settings(max_examples=15, deadline=None)
@given(
    owners=st.lists(st.integers(0, 2), min_size=6, max_size=6),
    order=st.permutations(range(6)),
)
def test_any_split_and_order_gives_the_same_bytes(owners, order):
    whole = observe_rows(range(6))
    parts = [observe_rows([n for n in order if owners[n] == process]) for process in range(3)]
    sent = [Statistics.from_state(part.state()) for part in parts[1:]]
    parts[0].merge(sent)
    assert_same_state(parts[0], whole)


def test_padding_and_batching_change_nothing():
    """Two rows at once, padded on the left by 3 tokens, are the two rows alone."""
    batched = Statistics(SHAPE, sample_tokens=64, skip_tokens=2)
    mask = torch.ones(2, 23)
    mask[:, :3] = 0
    visual = torch.nn.functional.pad(torch.stack([torch.arange(20) % 4 == number % 4 for number in (5, 6)]), (3, 0))
    for numbers in ((5, 6), (7, 8)):
        visual = torch.nn.functional.pad(torch.stack([torch.arange(20) % 4 == n % 4 for n in numbers]), (3, 0))
        batched.begin(numbers, mask, visual)
        for layer in range(SHAPE.layers):
            rows = [row(number + 100 * layer) for number in numbers]
            pieces = [torch.cat([one[place] for one in rows]) for place in range(3)]
            batched.observe(layer, *(torch.nn.functional.pad(x, (0, 0, 3, 0), value=99.0) for x in pieces))
    assert_same_state(batched, observe_rows([5, 6, 7, 8]))


def test_the_seed_chooses_other_tokens():
    first, second = (observe_rows(range(8), seed=seed).layer_samples(0)[0] for seed in (0, 1))
    assert not torch.equal(first.positions, second.positions)
    assert torch.equal(first.low, second.low)


def test_the_sample_is_even_over_places():
    statistics = Statistics(SHAPE, sample_tokens=4000, skip_tokens=0)
    statistics.begin([0], torch.ones(1, 16_000))
    for layer in range(2):
        statistics.observe(layer, *(torch.zeros(1, heads, 16_000, 4) for heads in (4, 2, 2)))
    quarters = np.bincount(statistics.layer_samples(0)[0].positions.numpy() // 4000, minlength=4)
    assert quarters.sum() == 4000 and (abs(quarters - 1000) < 100).all()


def test_mistakes_are_named():
    statistics = observe_rows([1])
    with pytest.raises(UserError, match="calibration sample 1 was observed twice"):
        statistics.begin([1], torch.ones(1, 20))
    with pytest.raises(UserError, match="calibration sample 1 was observed twice"):
        statistics.merge([observe_rows([1])])
    with pytest.raises(UserError, match="has 18 tokens after the first 2 of each prompt; at least 64"):
        statistics.layer_samples(0)
    with pytest.raises(UserError, match="sample_tokens is 3; keep at least 64"):
        Statistics(SHAPE, sample_tokens=3)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_names_its_layer(bad):
    statistics = Statistics(SHAPE)
    statistics.begin([0], torch.ones(1, 20))
    query, keys, values = row(0)
    statistics.observe(0, query, keys, values)
    values[0, 1, 7, 3] = bad
    with pytest.raises(UserError, match="layer 1: values hold NaN or infinity"):
        statistics.observe(1, query, keys, values)


def test_observing_a_model_sees_rotated_keys_and_gives_the_model_back(kv):
    model = kv.model()
    statistics = Statistics(cache_shape(model.config), sample_tokens=90, skip_tokens=0)
    ids = torch.randint(2, 48, (2, 45), generator=torch.Generator().manual_seed(0))
    before = model.config._attn_implementation
    with torch.no_grad(), observing(model, statistics):
        statistics.begin([0, 1], torch.ones_like(ids))
        logits = model(ids, use_cache=False).logits
    assert model.config._attn_implementation == before
    with torch.no_grad():
        plain = model(ids)
    assert torch.allclose(logits, plain.logits, atol=1e-5)
    cached = plain.past_key_values.layers[1].keys.transpose(1, 2).flatten(0, 1)
    sample, _ = statistics.layer_samples(1)
    exact = "donot_use_mm_for_euclid_dist"
    rows = torch.cdist(sample.vectors.flatten(1), cached.flatten(1), compute_mode=exact).amin(1)
    assert (rows < 1e-4).all()
    assert torch.allclose(sample.high[0], cached.amax(0), atol=1e-5)


def test_positions_that_do_not_count_tokens_are_refused(kv):
    model = kv.model()
    statistics = Statistics(cache_shape(model.config))
    mask = torch.ones(1, 20, dtype=torch.int64)
    mask[:, :4] = 0
    with torch.no_grad(), observing(model, statistics):
        statistics.begin([0], mask)
        with pytest.raises(UserError, match="give position_ids for a batch padded on the left"):
            model(torch.full((1, 20), 5), attention_mask=mask, use_cache=False)


@pytest.fixture(scope="module")
def calibrated(shared_kv):
    """A tiny model and statistics of 6 prompts of 60 tokens, a third of them visual."""
    model = shared_kv.model(heads=2, kv_heads=1, head_dim=32)
    statistics = Statistics(cache_shape(model.config), sample_tokens=256, skip_tokens=4)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad(), observing(model, statistics):
        for number in range(6):
            ids = torch.randint(2, 48, (1, 60), generator=generator)
            statistics.begin([number], torch.ones_like(ids), torch.arange(60)[None] % 3 == 0)
            model(ids, use_cache=False, logits_to_keep=1)
    return model, statistics


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_fitted_and_its_error_reported(calibrated, name):
    model, statistics = calibrated
    quantizer = fit_quantizer(PRESETS[name], statistics, rotation_of(model))
    errors = [error for layer in quantizer.errors for error in (layer.keys, layer.values)]
    most = {"full": 1e-12, "static8": 0.02, "static4": 0.15, "static3": 0.25}.get(name, 1.0)
    assert len(errors) == 4 and max(errors) < most
    assert name == "full" or min(errors) > 1e-4


def test_more_bits_are_nearer_and_searching_beats_minmax(calibrated):
    model, statistics = calibrated
    mean = {}
    for name in ("static2", "static3", "static4", "static8", "intp2", "intp2_minmax", "lloyd2"):
        errors = fit_quantizer(PRESETS[name], statistics, rotation_of(model)).errors
        mean[name] = sum(error.keys + error.values for error in errors)
    assert mean["static8"] < mean["static4"] < mean["static3"] < mean["static2"] < mean["intp2"] < mean["intp2_minmax"]


def test_fitting_refuses_tokens_that_no_statistics_saw(calibrated):
    model, statistics = calibrated
    policy = CachePolicy(keys=StaticChannel(), values=StaticChannel(), sink_tokens=2)
    with pytest.raises(UserError, match="leave out the first 4 tokens of a prompt, but sink_tokens is 2"):
        fit_quantizer(policy, statistics, rotation_of(model))

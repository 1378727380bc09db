"""The KIVI cache of the benchmark keeps its windows as the published code does."""

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache

from scripts.bench.kv_contenders import weigh
from scripts.bench.kv_kivi import KiviLayer

GROUP, RESIDUAL, DIM = 4, 8, 16


def tokens(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(1, 2, count, DIM, generator=draw) for _ in range(2))


def grouped(x, axis, bits=2):
    """``x`` with groups of 4 along ``axis`` brought to their own levels, range in float16."""
    pieces = []
    for piece in x.split(GROUP, dim=axis):
        low = piece.amin(axis, keepdim=True).half().double()
        step = ((piece.double().amax(axis, keepdim=True) - low) / (2**bits - 1)).half().double()
        pieces.append(low + step * ((piece.double() - low) / step).round().clamp(0, 2**bits - 1))
    return torch.cat(pieces, dim=axis)


@pytest.mark.parametrize("prompt", [3, 8, 21, 24])
def test_keys_gather_and_values_slide(prompt):
    """``L`` tokens: the newest ``L mod 8`` keys and the newest 8 values are as they were, the others coded once."""
    keys, values = tokens(prompt + 10)
    layer = KiviLayer(group=GROUP, residual=RESIDUAL)
    whole = layer.update(keys[:, :, :prompt], values[:, :, :prompt])
    assert torch.equal(whole[0], keys[:, :, :prompt]) and torch.equal(whole[1], values[:, :, :prompt])
    for step in range(prompt, prompt + 10):
        seen_keys, seen_values = layer.update(keys[:, :, step : step + 1], values[:, :, step : step + 1])
        coded_keys, coded_values = step // RESIDUAL * RESIDUAL, max(step - RESIDUAL, 0)
        assert seen_keys.shape[2] == seen_values.shape[2] == layer.get_seq_length() == step + 1
        assert torch.equal(seen_keys[:, :, coded_keys:], keys[:, :, coded_keys : step + 1])
        assert torch.equal(seen_values[:, :, coded_values:], values[:, :, coded_values : step + 1])
        if coded_keys:
            expected = grouped(keys[:, :, :coded_keys], 2)
            assert torch.allclose(seen_keys[:, :, :coded_keys].double(), expected, atol=1e-5)
        if coded_values:
            expected = grouped(values[:, :, :coded_values], 3)
            assert torch.allclose(seen_values[:, :, :coded_values].double(), expected, atol=1e-5)


def test_groups_of_32_take_three_bits_and_windows_are_counted_beside_them():
    keys, values = (torch.randn(1, 2, 300, 64) for _ in range(2))
    cache = Cache(layers=[KiviLayer()])
    cache.layers[0].update(keys, values)
    weight = weigh(cache)
    coded, exact = 2 * 64 * (256 + 172), 2 * 64 * (44 + 128)
    assert weight.bits == 3.0
    assert weight.total == coded * 3 // 8 + exact * 4


def test_a_model_generates_behind_it_and_loses_only_what_is_coded(kv):
    model = kv.model()
    ids = torch.randint(2, 48, (2, 20), generator=torch.Generator().manual_seed(1))
    logits = {}
    for name, bits in (("eight", 8), ("one", 1)):
        layers = [KiviLayer(bits=bits, group=GROUP, residual=RESIDUAL) for _ in range(2)]
        logits[name] = step_logits(model, ids, Cache(layers=layers))
    exact = step_logits(model, ids, DynamicCache(config=model.config))
    assert float((logits["eight"] - exact).abs().max()) < 0.25 < float((logits["one"] - exact).abs().max())


def step_logits(model, ids, cache):
    """Of the token after the prompt, one step on the cache."""
    with torch.no_grad():
        model(ids, past_key_values=cache)
        return model(torch.full((len(ids), 1), 7), past_key_values=cache).logits

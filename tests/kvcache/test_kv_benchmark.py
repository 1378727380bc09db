"""The comparison of caches: what it streams, what it holds the results against, and its table."""

import pytest
import torch
from transformers.cache_utils import Cache, DynamicLayer

from longvid_train.kvcache.cache import QuantizedKVCache
from longvid_train.kvcache.presets import preset
from longvid_train.kvcache.quantizer import uncalibrated
from scripts.bench.kv_contenders import FULL, Contender
from scripts.bench.kv_schemes import Row, attention_row, table
from scripts.bench.kv_tensors import GROUP, HEAD_DIM, SHAPE, LayerTensors, exact_attention, make_world

TOKENS, STEPS = 300, 3


@pytest.fixture(scope="module")
def tensors():
    return make_world().sequence(TOKENS, STEPS)


def test_exact_attention_is_causal_softmax_over_grouped_heads(tensors):
    found = exact_attention(tensors)
    keys, values = tensors.keys.double(), tensors.values.double()
    for head, step in ((0, 0), (5, 1), (15, 2)):
        seen = TOKENS - STEPS + step + 1
        scores = keys[0, head // GROUP, :seen] @ tensors.queries[0, head, step].double() / HEAD_DIM**0.5
        expected = scores.softmax(0) @ values[0, head // GROUP, :seen]
        assert torch.allclose(found[0, head, step], expected, atol=1e-12)


def test_a_cache_that_loses_nothing_has_no_error_and_two_bits_have_some(tensors):
    quantizer = uncalibrated(preset("kivi_g32"), SHAPE)
    full = attention_row("x", Contender(FULL, lambda: Cache(layers=[DynamicLayer()]), on_codes=False), [tensors])
    ours = attention_row("x", Contender("ours", lambda: QuantizedKVCache(quantizer), on_codes=True), [tensors])
    assert full.error < 1e-5 < 0.1 < ours.error < 1.0
    assert (full.bits, full.bytes_a_token) == (32.0, 2 * 4 * 4 * HEAD_DIM)
    assert ours.bits == 3.0
    coded = (TOKENS - 128) // 32 * 32
    exact = (TOKENS - coded + 4) * 2 * 4 * 4 * HEAD_DIM
    assert ours.bytes_a_token * TOKENS == pytest.approx(coded * 2 * 4 * HEAD_DIM * 3 / 8 + exact, abs=100)


def test_steps_are_appended_one_by_one(tensors):
    """The last query sees the two tokens before it: without them the result is another."""
    shortened = LayerTensors(tensors.keys, tensors.values, tensors.queries[:, :, -1:])
    contender = Contender(FULL, lambda: Cache(layers=[DynamicLayer()]), on_codes=False)
    assert attention_row("x", contender, [shortened]).error < 1e-5
    assert torch.allclose(exact_attention(shortened)[:, :, 0], exact_attention(tensors)[:, :, -1])


def test_the_table_has_the_columns_that_were_measured_and_says_what_did_not_run():
    rows = [
        Row(part="p", scheme="two", tokens=2048, bits=2.0, bytes_a_token=12.4, error=0.5, ms=3.0, ratio=1.5),
        Row(part="p", scheme="full", tokens=2048, bits=32.0, bytes_a_token=99.6, error=0.0, ms=2.0, ratio=1.0),
    ]
    assert table(rows, {"peer": "no module"}).splitlines() == [
        "p, 2,048 tokens",
        "",
        "| cache | bits | B/token | error | ms | x |",
        "| --- | --- | --- | --- | --- | --- |",
        "| full | 32.00 | 100 | 0.000 | 2.0 | 1.0 |",
        "| two | 2.00 | 12 | 0.500 | 3.0 | 1.5 |",
        "| peer | does not run: no module |",
    ]

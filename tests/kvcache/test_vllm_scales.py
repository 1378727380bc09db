"""fp8 scales for vLLM: values, names, and what the statistics keep for them."""

import pytest
import torch

from longvid_train.errors import UserError
from longvid_train.kvcache.export_vllm import attention_names, fp8_scales
from longvid_train.kvcache.fitting import fit_quantizer
from longvid_train.kvcache.presets import PRESETS
from longvid_train.kvcache.quantizer import CacheShape, LayerLargest
from longvid_train.kvcache.statistics import Statistics

SHAPE = CacheShape(layers=2, heads=2, head_dim=8)


def observed(prompts, padding=0):
    statistics = Statistics(SHAPE, sample_tokens=64)
    for number, (keys, values) in prompts:
        mask = torch.ones(1, keys.shape[2], dtype=torch.int64)
        mask[:, :padding] = 0
        statistics.begin([number], mask)
        for layer in range(SHAPE.layers):
            statistics.observe(layer, keys, (layer + 1) * keys, (layer + 1) * values)
    return statistics


def drawn(number, tokens=80):
    draw = torch.Generator().manual_seed(number)
    return number, tuple(torch.randn(1, 2, tokens, 8, generator=draw) for _ in range(2))


def test_the_largest_number_counts_first_tokens_and_not_padding():
    number, (keys, values) = drawn(0)
    keys[0, 1, 3, 5], keys[0, 0, 0, 0] = -90.0, 1e4
    statistics = observed([(number, (keys, values))], padding=3)
    assert statistics.skip_tokens == 4
    assert statistics.largest(0) == (90.0, values[:, :, 3:].abs().max().item())
    assert statistics.largest(1)[0] == 180.0


def test_parts_of_a_calibration_merge_to_the_largest_of_all():
    rows = [drawn(number) for number in range(3)]
    whole, first, second = observed(rows), observed(rows[:1]), observed(rows[1:])
    first.merge([Statistics.from_state(second.state())])
    assert [first.largest(layer) for layer in range(2)] == [whole.largest(layer) for layer in range(2)]
    assert whole.largest(0)[0] == max(keys.abs().max().item() for _, (keys, _) in rows)


def test_a_quantizer_keeps_the_ranges_of_its_calibration(kv):
    statistics = observed([drawn(0)])
    quantizer = fit_quantizer(PRESETS["static8"], statistics, kv.rotation(8))
    assert [(one.keys, one.values) for one in quantizer.largest] == [statistics.largest(0), statistics.largest(1)]


def test_the_largest_number_is_the_largest_of_e4m3_and_survives_the_round_trip():
    largest = (LayerLargest(keys=63.0, values=0.5), LayerLargest(keys=448.0, values=7.0))
    scales = fp8_scales(largest, ["a.layers.0.self_attn", "a.layers.1.self_attn"])
    assert list(scales) == [f"a.layers.{layer}.self_attn.{side}_scale" for layer in range(2) for side in "kv"]
    assert scales["a.layers.0.self_attn.k_scale"].item() == 63 / 448
    assert scales["a.layers.1.self_attn.k_scale"].item() == 1.0
    for sizes, layer in zip(largest, range(2), strict=True):
        for side, size in (("k", sizes.keys), ("v", sizes.values)):
            scale = scales[f"a.layers.{layer}.self_attn.{side}_scale"]
            stored = (torch.tensor([size, -size / 3]) / scale).to(torch.float8_e4m3fn)
            assert (stored.float() * scale - torch.tensor([size, -size / 3])).abs().max() <= size / 3 / 16
            assert stored[0].item() == 448


@pytest.mark.parametrize(
    "names",
    [
        [
            "language_model.model.layers.{}.self_attn.k_proj.weight",
            "vision_tower.encoder.layers.{}.self_attn.k_proj.weight",
        ],
        [
            "model.layers.{}.self_attn.k_proj.weight",
            "model.layers.{}.self_attn.k_proj.bias",
            "model.layers.{}.mlp.up_proj.weight",
        ],
        [
            "model.language_model.layers.{}.self_attn.k_proj.weight",
            "model.video_tower.layers.{}.self_attn.k_proj.weight",
        ],
    ],
    ids=["public", "text", "saved by transformers 5"],
)
def test_scales_stand_beside_the_decoders_projections(names):
    tensors = [name.format(layer) for layer in range(11) for name in names]
    found = attention_names(tensors, 11)
    assert found == [names[0].format(layer).removesuffix(".k_proj.weight") for layer in range(11)]


def test_a_checkpoint_of_other_layers_and_empty_ranges_are_refused():
    with pytest.raises(UserError, match="key projections of 2 decoder layers, the quantizer is for 3"):
        attention_names([f"model.layers.{layer}.self_attn.k_proj.weight" for layer in range(2)], 3)
    with pytest.raises(UserError, match="layer 0: the calibration saw no v other than zero"):
        fp8_scales([LayerLargest(keys=1.0, values=0.0)], ["a"])

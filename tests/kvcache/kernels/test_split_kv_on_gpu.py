"""The compiled kernels on a GPU: against torch page by page, in float32 and bfloat16, whole layers included."""

import pytest
import torch

from longvid_train.kvcache.kernels.choice import MOST_ROWS, page_decoder
from longvid_train.kvcache.layer import LayerSettings, QuantizedLayer
from longvid_train.kvcache.presets import PRESETS

pytestmark = pytest.mark.gpu

SHAPES = {"vicuna": (32, 1, 128), "qwen2": (4, 7, 128), "80": (2, 4, 80), "96": (2, 2, 96), "64": (2, 14, 64)}
TOLERANCES = {torch.float32: 3e-5, torch.bfloat16: 2e-2}
"""In bfloat16 weights and values of a product are rounded to 8 bits, as in every flash attention."""


def layer_on(device, kv, name, heads, head_dim, dtype, decoding, tokens=2500):
    policy, rotation, where = PRESETS[name], kv.rotation(head_dim), kv.places(1, 200)
    codecs = []
    for seed, scheme in enumerate((policy.keys, policy.values)):
        sample = kv.sample(kv.heavy(1, heads, 200, head_dim, seed=seed), where)
        parameters = scheme.fit(sample, separate=False, rotation=rotation)
        codecs.append(scheme.codec(parameters, rotation=rotation))
    shared = LayerSettings(
        sink_tokens=4, recent_tokens=128, block_tokens=policy.block_tokens, needs_kinds=False, decoding=decoding
    )
    layer = QuantizedLayer(*codecs, shared)
    padding = torch.tensor([0, 300], device=device)
    layer.begin(kinds=None, padding=padding, first_position=-padding)
    made = [kv.heavy(2, heads, tokens + 1, head_dim, seed=7 + seed).to(device, dtype) for seed in range(2)]
    layer.update(*(x[:, :, :tokens] for x in made))
    layer.settle()
    layer.update(*(x[:, :, tokens:] for x in made))
    return layer


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["static8", "static3", "static2", "bias2", "lloyd2", "k4v2", "kivi_g32"])
def test_a_step_of_a_layer_is_that_of_torch(kv, name, shape, dtype):
    heads, group, head_dim = SHAPES[shape]
    assert group <= MOST_ROWS
    query = torch.randn(2, heads * group, 1, head_dim, generator=torch.Generator().manual_seed(3)).to("cuda", dtype)
    mask = torch.ones(2, 1, 1, 2501, dtype=torch.bool, device="cuda")
    mask[1, :, :, :300] = False
    found, expected = (
        layer_on("cuda", kv, name, heads, head_dim, dtype, decoding).attend(query, mask, 0.3 * head_dim**-0.5).float()
        for decoding in ("triton", "torch")
    )
    assert (found - expected).norm() / expected.norm() < TOLERANCES[dtype]


def test_the_kernels_are_chosen_on_cuda_and_hold_no_second_copy_of_the_cache(kv):
    layer = layer_on("cuda", kv, "static2", 4, 128, torch.bfloat16, "auto", tokens=40_000)
    given = {"heads": 4, "head_dim": 128, "dtype": torch.bfloat16, "device": torch.device("cuda")}
    assert page_decoder(layer._key_codec, layer._value_codec, decoding="auto", **given) is not None
    query = torch.randn(2, 28, 1, 128, device="cuda", dtype=torch.bfloat16)
    layer.attend(query, None, 0.1)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    layer.attend(query, None, 0.1)
    assert torch.cuda.max_memory_allocated() - before < 0.5 * layer.used_bytes().coded

"""Planned activations of a prefill in chunks against storages alive while `generate_from_tokens` runs."""

import weakref
from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from longvid_train.cost.coded_kv import coded_kv, shape_of
from longvid_train.cost.decoder import decoder_shape
from longvid_train.cost.hardware import hardware
from longvid_train.cost.inference import Request, VisionCost, inference_cost
from longvid_train.cost.kv_storage import PlainKv
from longvid_train.kvcache.attention import attending_on_codes
from longvid_train.kvcache.cache import QuantizedKVCache
from longvid_train.kvcache.presets import PRESETS
from longvid_train.kvcache.quantizer import cache_shape, uncalibrated
from longvid_train.models.prefill import generate_from_tokens

PLACEHOLDER = 96
BLIND = VisionCost(ops=0, elements=0, working_bytes=0, chunks=1)


class NewStorages(TorchDispatchMode):
    """The most bytes that storages held at once which the block made, weights and inputs left out."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        given = {leaf.untyped_storage()._cdata for leaf in leaves}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in given | self.known:
                self._hold(tensor.untyped_storage())
        return result

    def _hold(self, storage):
        key, size = storage._cdata, storage.nbytes()
        self.known.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key, size):
        self.known.discard(key)
        self.alive -= size


@pytest.mark.parametrize("preset", [None, "kivi_g32"], ids=["plain", "codes"])
@pytest.mark.parametrize(
    ("kv_heads", "intermediate", "tokens", "chunk"),
    [(4, 64, 2040, 256), (2, 64, 2040, 1024), (2, 64, 2040, 96), (2, 1600, 1016, 256)],
    ids=["all heads", "mask", "many chunks", "mlp"],
)
def test_chunked_prefill_is_within_a_tenth_of_what_is_alive(preset, kv_heads, intermediate, tokens, chunk):
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        intermediate_size=intermediate,
        vocab_size=97,
        max_position_embeddings=8192,
    )
    model, shape = Qwen2ForCausalLM(config).eval(), decoder_shape(config)
    if preset is None:
        storage, cache, reading = PlainKv(value_bytes=4), DynamicCache(config=config), nullcontext()
    else:
        storage = coded_kv(PRESETS[preset], shape_of(shape), value_bytes=4)
        cache = QuantizedKVCache(uncalibrated(PRESETS[preset], cache_shape(config)))
        reading = attending_on_codes(model)
    ids = torch.full((1, tokens + 8), PLACEHOLDER)
    ids[:, :4] = ids[:, -4:] = 1
    visual = torch.zeros(tokens, 128)
    with reading, NewStorages() as watch:
        generate_from_tokens(
            model,
            ids,
            torch.ones_like(ids),
            [visual],
            placeholder_id=PLACEHOLDER,
            prefill_chunk=chunk,
            cache=cache,
            max_new_tokens=1,
            do_sample=False,
        )
    request = Request(visual_tokens=tokens, text_tokens=8, new_tokens=1, prefill_chunk=chunk)
    cost = inference_cost(shape, BLIND, request, storage, hardware("l40s"), weight_value_bytes=4)
    assert cost.total_bytes - cost.weight_bytes == pytest.approx(watch.peak + visual.nbytes, rel=0.1)

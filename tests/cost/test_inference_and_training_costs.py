"""Sums of the planner by hand, and against a running decoder."""

import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from longvid_train.cost.capacity import HEADROOM, most_frames
from longvid_train.cost.decoder import decoder_shape
from longvid_train.cost.hardware import hardware, hardware_names
from longvid_train.cost.inference import Request, VisionCost, inference_cost
from longvid_train.cost.intp_table import VICUNA_7B
from longvid_train.cost.kv_storage import PlainKv
from longvid_train.cost.training import TrainingJob, training_cost
from longvid_train.errors import UserError
from longvid_train.models.backbones.published import PUBLISHED

BLIND = VisionCost(ops=0, elements=0, working_bytes=0, chunks=1)
QWEN2_7B = decoder_shape(PUBLISHED["llava-onevision-7b"]().get_text_config())
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 97,
}


class StorageWatch(TorchDispatchMode):
    """The most bytes that new storages held at once."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._hold(tensor.untyped_storage())
        return result

    def _hold(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key, size):
        self.known.discard(key)
        self.alive -= size


@pytest.mark.parametrize(("shape", "gb"), [(VICUNA_7B, 26.3), (QWEN2_7B, 2.88)], ids=["vicuna", "qwen2"])
def test_cache_of_256_frames_of_196_tokens(shape, gb):
    assert PlainKv().stored_bytes(shape, 256 * 196, 1) / 1e9 == pytest.approx(gb, rel=2e-3)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("chunk", [None, 5])
def test_kv_bytes_are_those_of_a_running_cache(rows, chunk):
    torch.manual_seed(0)
    config = Qwen2Config(**SIZES, num_key_value_heads=2)
    model = Qwen2ForCausalLM(config).eval()
    request = Request(visual_tokens=11, text_tokens=6, new_tokens=4, rows=rows, prefill_chunk=chunk)
    cache = DynamicCache(config=config)
    ids = torch.randint(1, 97, (rows, request.prompt_tokens))
    generated = model.generate(ids, past_key_values=cache, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert generated.shape[1] == request.sequence_tokens
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    cost = inference_cost(
        decoder_shape(config), BLIND, request, PlainKv(value_bytes=4), hardware("l40s"), weight_value_bytes=4
    )
    assert cost.kv_bytes == held
    assert cost.weight_bytes == sum(parameter.nbytes for parameter in model.parameters())


@pytest.mark.parametrize("wide", [False, True], ids=["mlp", "attention"])
def test_activations_of_a_prefill_are_within_a_tenth_of_what_is_alive(wide):
    torch.manual_seed(0)
    sizes = SIZES | {"intermediate_size": 64 if wide else 320}
    config = LlamaConfig(**sizes, num_key_value_heads=4, max_position_embeddings=4096)
    model = LlamaForCausalLM(config).eval()
    tokens = 2048
    watch = StorageWatch()
    with torch.no_grad():
        ids = torch.randint(1, 97, (1, tokens))
        embeds = model.get_input_embeddings()(ids)
        visual = torch.zeros_like(embeds)
        with watch:
            model(inputs_embeds=embeds, use_cache=False, logits_to_keep=1)
    request = Request(visual_tokens=tokens, text_tokens=0, new_tokens=1)
    cost = inference_cost(
        decoder_shape(config), BLIND, request, PlainKv(value_bytes=4), hardware("l40s"), weight_value_bytes=4
    )
    assert cost.activation_bytes == pytest.approx(watch.peak + embeds.nbytes + visual.nbytes, rel=0.1)


def test_chunks_cut_activations_and_leave_the_operations():
    whole = Request(visual_tokens=5000, text_tokens=24, new_tokens=8)
    parts = replace(whole, prefill_chunk=512)
    assert parts.chunks == [512] * 9 + [5023 - 9 * 512, 1] and sum(parts.chunks) == whole.prompt_tokens
    at_once = inference_cost(QWEN2_7B, BLIND, whole, PlainKv(), hardware("h100-sxm"))
    in_parts = inference_cost(QWEN2_7B, BLIND, parts, PlainKv(), hardware("h100-sxm"))
    assert in_parts.prefill_ops == at_once.prefill_ops
    assert in_parts.kv_bytes == at_once.kv_bytes
    assert in_parts.activation_bytes < at_once.activation_bytes / 3
    assert in_parts.bytes_moved > at_once.bytes_moved


def test_a_decode_step_waits_for_weights_and_cache():
    device = hardware("a100-80gb-sxm")
    request = Request(visual_tokens=8000, text_tokens=191, new_tokens=1)
    cost = inference_cost(VICUNA_7B, BLIND, request, PlainKv(), device)
    moved = 2 * (VICUNA_7B.matrix_elements + VICUNA_7B.vector_elements + VICUNA_7B.head_elements)
    moved += 8192 * VICUNA_7B.kv_values_a_token * 2
    assert cost.decode_bound == "memory"
    assert cost.decode_ms == pytest.approx(1e3 * moved / 2039e9, rel=2e-3)
    assert cost.decode_ops == 2 * (VICUNA_7B.matrix_elements + VICUNA_7B.head_elements) + 4 * 32 * 4096 * 8192


def test_parts_of_an_answer_add_up():
    vision = VisionCost(ops=10**15, elements=4 * 10**8, working_bytes=10**7, chunks=4)
    request = Request(visual_tokens=6272, text_tokens=64, new_tokens=32)
    cost = inference_cost(QWEN2_7B, vision, request, PlainKv(), hardware("h100-sxm"))
    assert cost.encode_ms == pytest.approx(1e18 / 989.4e12)
    assert cost.encode_ms + cost.prefill_ms < cost.answer_ms <= cost.encode_ms + cost.prefill_ms + 32 * cost.decode_ms
    assert cost.encode_ops + cost.prefill_ops < cost.ops <= cost.encode_ops + cost.prefill_ops + 32 * cost.decode_ops
    assert cost.total_bytes == cost.weight_bytes + cost.kv_bytes + cost.activation_bytes


@given(
    slope=st.integers(1, 10**6), base=st.integers(0, 10**7), memory=st.integers(1, 10**8), step=st.sampled_from([1, 8])
)
def test_most_frames_fit_and_one_step_more_does_not(slope, base, memory, step):
    limit = 512
    frames = most_frames(lambda count: base + slope * count, memory, limit=limit, step=step)
    assert frames % step == 0 and 0 <= frames <= limit
    assert frames == 0 or base + slope * frames <= HEADROOM * memory
    assert frames + step > limit or base + slope * (frames + step) > HEADROOM * memory


JOB = TrainingJob(
    parameters=1000,
    trainable=600,
    sequence_tokens=128,
    rows=2,
    flops=10**12,
    vision_bytes=77,
    supervised_chunk=64,
    gpus=4,
    zero=0,
)
TRAINED = replace(VICUNA_7B, layers=3, width=8, intermediate=20, heads=2, kv_heads=2, head_dim=4, vocabulary=50)


@pytest.mark.parametrize(
    ("zero", "states"),
    [(0, (4000, 2400, 4800)), (1, (2000, 1200, 1800)), (2, (2000, 300, 1800)), (3, (500, 300, 1800))],
)
def test_zero_divides_the_states_as_its_paper_says(zero, states):
    cost = training_cost(TRAINED, replace(JOB, zero=zero), hardware("l40s"))
    assert (cost.weight_bytes, cost.gradient_bytes, cost.optimizer_bytes) == states
    inner = 4 * 8 + 2 * 8 + 2 * 8 + 4 * 20
    assert cost.activation_bytes == 2 * 256 * (3 * 8 + inner) + 64 * 50 * 10 + 77
    assert cost.total_bytes == sum(states) + cost.activation_bytes


def test_without_checkpointing_every_layer_keeps_its_insides():
    kept = training_cost(TRAINED, JOB, hardware("l40s")).activation_bytes
    whole = training_cost(TRAINED, replace(JOB, gradient_checkpointing=False), hardware("l40s")).activation_bytes
    inner = 4 * 8 + 2 * 8 + 2 * 8 + 4 * 20
    assert whole - kept == 2 * 256 * (2 * inner - 3 * 8)


def test_impossible_jobs_are_refused():
    with pytest.raises(UserError, match="zero is 4; use 0 \\(DDP\\), 1, 2 or 3"):
        replace(JOB, zero=4)
    with pytest.raises(UserError, match="gpus is 0"):
        replace(JOB, gpus=0)


def test_every_device_is_whole_and_a_wrong_name_gets_a_hint():
    for name in hardware_names():
        device = hardware(name)
        assert 1e13 < device.flops_per_s < 1e16 and 1e11 < device.bytes_per_s < 1e13 and device.source
    with pytest.raises(UserError, match="device 'h100-sx' is unknown; did you mean 'h100-sxm'"):
        hardware("h100-sx")

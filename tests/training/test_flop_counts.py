"""The analytic FLOPs against what torch's own counter sees in a real forward and backward pass."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, CLIPVisionConfig, InstructBlipQFormerConfig, InstructBlipVisionConfig, LlamaConfig

from longvid_train.commands.init import NANO_PARTS
from longvid_train.models.llama_vid import LlamaVidConfig, LlamaVidForConditionalGeneration, build_llama_vid
from longvid_train.models.lora import LoraShape, insert_lora
from longvid_train.training.flops import PARTS, causal_pairs, count_flops
from longvid_train.training.stages import LLAMA_VID_STAGES, Stage, apply_stage
from longvid_train.training.work import Work, sequence_lengths, work_of
from longvid_train.types import Batch

SIZE = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4}
PICTURE = {"image_size": 28, "patch_size": 7}
VISUAL_ID, WORDS = 60, 50
FRAMES, GRID, PROMPT_TOKENS = 3, 2, 7


def tower(kind: str) -> Any:
    return (CLIPVisionConfig if kind == "clip" else InstructBlipVisionConfig)(**SIZE, **PICTURE)


def decoder(kind: str) -> Any:
    places = {"vocab_size": WORDS, "max_position_embeddings": 64}
    if kind == "bert":
        return BertConfig(**SIZE, **places, is_decoder=True, add_cross_attention=True)
    width = 20 if kind == "narrow" else 24
    return None if kind == "none" else InstructBlipQFormerConfig(**SIZE, **places, encoder_hidden_size=width)


def tiny(tower_kind: str = "eva", decoder_kind: str = "qformer", **fields: Any) -> LlamaVidForConditionalGeneration:
    language = LlamaConfig(vocab_size=VISUAL_ID, **{**SIZE, "hidden_size": 32}, num_key_value_heads=2, pad_token_id=0)
    config = LlamaVidConfig(
        vision_config=tower(tower_kind),
        text_decoder_config=decoder(decoder_kind),
        text_config=language,
        visual_token_id=VISUAL_ID,
        max_prompt_tokens=16,
        num_queries=4,
        frame_chunk=2,
        **fields,
    )
    return LlamaVidForConditionalGeneration(config)


def full_batch(config: LlamaVidConfig, rows: int = 2) -> Batch:
    """Rows of one length whose prompts have one length: no padding anywhere."""
    generator = torch.Generator().manual_seed(0)
    visual_tokens = FRAMES * config.tokens_per_frame(GRID)
    ids = torch.randint(3, WORDS, (rows, visual_tokens + 20), generator=generator)
    ids[:, 5 : 5 + visual_tokens] = config.visual_token_id
    labels = torch.full_like(ids, -100)
    labels[:, -6:] = ids[:, -6:]
    side = config.image_size
    return {
        "text": {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels},
        "visual": {
            "pixel_values": torch.randn(rows * FRAMES, 3, side, side, generator=generator),
            "visual_spans": torch.tensor([[row * FRAMES, FRAMES, row] for row in range(rows)]),
            "content_grids": torch.full((rows,), GRID),
            "prompt_input_ids": torch.randint(3, WORDS, (rows, PROMPT_TOKENS), generator=generator),
            "prompt_attention_mask": torch.ones(rows, PROMPT_TOKENS, dtype=torch.long),
        },
        "sample_ids": [f"row{row}" for row in range(rows)],
        "shortened": {},
    }


def counted_by_torch(model: Any, batch: Batch) -> tuple[int, int]:
    visual: dict[str, Any] = {**batch["visual"]} if batch["visual"] else {}
    with FlopCounterMode(display=False) as forward:
        loss, _ = model.loss_sum(**batch["text"], **visual)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


def counted_here(model: Any, batch: Batch) -> tuple[int, int]:
    """Whole squares, as eager attention computes them."""
    flops = count_flops(model, work_of(batch, model.config), skip_masked=False).values()
    return sum(part.forward for part in flops), sum(part.backward for part in flops)


def check(model: Any, trainable: list[str] | None) -> None:
    model.set_attn_implementation("eager")
    if trainable is not None:
        apply_stage(model, Stage(name="s", trainable=trainable))
    model.train()
    batch = full_batch(model.config)
    assert counted_here(model, batch) == counted_by_torch(model, batch)


TRAINABLE = {
    "stage1": LLAMA_VID_STAGES[1].trainable,
    "stage2": LLAMA_VID_STAGES[2].trainable,
    "stage3": LLAMA_VID_STAGES[3].trainable,
    "all": ["*"],
    "language_model": ["language_model"],
    "last_layer": ["language_model.model.layers.2"],
    "norms": ["*norm*"],
    "tower": ["vision_tower"],
    "decoder": ["text_decoder"],
}


@pytest.mark.parametrize("stage", TRAINABLE)
@pytest.mark.parametrize("kinds", [("eva", "qformer"), ("clip", "narrow"), ("eva", "bert")], ids="-".join)
def test_counts_are_torch_s_to_the_last_flop(kinds: tuple[str, str], stage: str) -> None:
    check(tiny(*kinds), TRAINABLE[stage])


@pytest.mark.parametrize("fields", [{"decoder_kind": "none"}, {"use_content": False}], ids=["content", "context"])
def test_models_with_one_kind_of_token(fields: dict[str, Any]) -> None:
    check(tiny(**fields), ["*", "!vision_tower"])


def test_lora_counts_its_small_matrices_and_not_the_frozen_ones() -> None:
    model = tiny()
    paths = tuple(f"language_model.model.layers.{layer}.self_attn.{name}_proj" for layer in (1, 2) for name in "qv")
    insert_lora(model, LoraShape(r=2, alpha=4.0, dropout=0.0, target_modules=paths))
    check(model, None)


def test_the_shipped_nano_model() -> None:
    model = build_llama_vid(
        vision_tower=NANO_PARTS / "tower",
        text_decoder=NANO_PARTS / "qformer",
        language_model=NANO_PARTS / "language_model",
        visual_token_id=578,
    ).float()
    check(model, LLAMA_VID_STAGES[2].trainable)


def test_a_text_batch_costs_no_vision() -> None:
    model = tiny()
    model.set_attn_implementation("eager")
    apply_stage(model, Stage(name="s", trainable=["language_model"]))
    batch = full_batch(model.config)
    batch["visual"] = None
    batch["text"]["input_ids"][:] = 7
    assert counted_here(model, batch) == counted_by_torch(model, batch)
    flops = count_flops(model, work_of(batch, model.config))
    assert [part for part in PARTS if flops[part].total] == ["language_model"]


def test_cached_features_cost_no_tower() -> None:
    model = tiny()
    batch = full_batch(model.config)
    whole = count_flops(model, work_of(batch, model.config))
    assert batch["visual"] is not None
    batch["visual"]["visual_features"] = torch.zeros(len(batch["visual"].pop("pixel_values")), 17, 24)
    work = work_of(batch, model.config)
    cached = count_flops(model, work)
    assert (work.encoded_frames, work.shown_frames) == (0, 2 * FRAMES)
    assert cached["vision_tower"].total == 0 < whole["vision_tower"].total
    assert cached["text_decoder"].forward == whole["text_decoder"].forward


def test_gradient_checkpointing_is_not_useful_work() -> None:
    model = tiny()
    model.set_attn_implementation("eager")
    batch = full_batch(model.config)
    plain = counted_here(model, batch)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert counted_here(model, batch) == plain
    forward, backward = counted_by_torch(model, batch)
    assert forward == plain[0]
    assert backward > plain[1] + 0.5 * forward


def test_padding_and_the_masked_half_are_left_out() -> None:
    model = tiny()
    batch = full_batch(model.config)
    work = work_of(batch, model.config)
    length = batch["text"]["input_ids"].shape[1]
    assert (work.samples, work.tokens, work.slots, work.supervised) == (2, 2 * length, 2 * length, 12)
    assert work.prompts == {PROMPT_TOKENS: 2 * FRAMES}
    assert work.content_cells == 2 * FRAMES * GRID**2
    batch["text"]["attention_mask"][1, -4:] = 0
    assert batch["visual"] is not None
    batch["visual"]["prompt_attention_mask"][0, -2:] = 0
    padded = work_of(batch, model.config)
    assert padded.rows == {length: 1, length - 4: 1}
    assert (padded.tokens, padded.slots) == (2 * length - 4, 2 * length)
    assert padded.prompts == {PROMPT_TOKENS - 2: FRAMES, PROMPT_TOKENS: FRAMES}
    masked, square = count_flops(model, work), count_flops(model, work, skip_masked=False)
    left_out = 2 * (length * length - causal_pairs(length))
    assert square["language_model"].forward - masked["language_model"].forward == 3 * left_out * 2 * 2 * 32
    assert square["text_decoder"] == masked["text_decoder"]


def test_seven_billion_parameters_are_counted_without_weights() -> None:
    """Llama's share by PaLM's formula: 2 N a token forward, and 4 H causal pairs a layer."""
    config = tiny().config
    config.text_config = LlamaConfig(vocab_size=VISUAL_ID)
    config.text_config.pad_token_id = 0
    with torch.device("meta"):
        model = LlamaVidForConditionalGeneration(config)
    work = Work(
        encoded_frames=0, shown_frames=0, prompts={}, content_cells=0, rows={2048: 1}, supervised=0, samples=1, slots=1
    )
    layers = sum(parameter.numel() for parameter in model.get_decoder().layers.parameters() if parameter.ndim == 2)
    assert layers > 6e9
    expected = 2 * layers * 2048 + 32 * 4 * 4096 * causal_pairs(2048)
    assert count_flops(model, work)["language_model"].forward == expected


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_sequences_of_a_packed_row_are_its_samples(lengths: list[int]) -> None:
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    assert sequence_lengths({"input_ids": positions, "position_ids": positions}) == lengths

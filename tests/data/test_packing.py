"""A packed batch is the padded batch: the same loss, count and gradients, with no attention from sample to sample."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import InstructBlipQFormerConfig, InstructBlipVisionConfig, LlamaConfig

from longvid_train.data.collate import collate, pack
from longvid_train.data.conversation import (
    ConversationOptions,
    EncodedSample,
    LoadedMedium,
    MediumLayout,
    encode_conversation,
)
from longvid_train.data.manifest import Turn
from longvid_train.data.templates import PLAIN, VICUNA_V1
from longvid_train.models.llama_vid import LlamaVidConfig, LlamaVidForConditionalGeneration
from longvid_train.types import Batch

KINDS = ("text", "plain text", "image", "video", "two questions", "image and video")


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(processor: Any, request: pytest.FixtureRequest) -> Any:
    """Tower and Q-Former that fit ``processor``; every weight counts."""
    size: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "initializer_range": 0.2,
    }
    config = LlamaVidConfig(
        vision_config=InstructBlipVisionConfig(**size, image_size=8, patch_size=2),
        text_decoder_config=InstructBlipQFormerConfig(
            **size, vocab_size=len(processor.prompt_tokenizer), encoder_hidden_size=16, max_position_embeddings=300
        ),
        text_config=LlamaConfig(
            **size, num_key_value_heads=1, vocab_size=len(processor.tokenizer), max_position_embeddings=2048
        ),
        visual_token_id=processor.visual_token_id,
        num_queries=3,
    )
    torch.manual_seed(0)
    built = LlamaVidForConditionalGeneration(config).eval()
    built.set_attn_implementation({"text_config": request.param})
    return built


@pytest.fixture(scope="module")
def make_sample(processor: Any) -> Callable[[str, int], EncodedSample]:
    def frames(kind: str, count: int, seed: int) -> LoadedMedium:
        lines = (("a line",),) + ((),) * (count - 1) if kind == "video" else ((),)
        generator = torch.Generator().manual_seed(seed)
        return LoadedMedium(MediumLayout(kind, lines), torch.randn(count, 3, 8, 8, generator=generator))  # type: ignore[arg-type]

    def make(kind: str, seed: int) -> EncodedSample:
        answer, count = "b" * (1 + seed % 5), 1 + seed % 4
        image, video = frames("image", 1, seed), frames("video", count, seed + 100)
        rows: dict[str, tuple[list[str], list[LoadedMedium]]] = {
            "text": ([f"Hi {seed}", answer], []),
            "plain text": (["unused", f"{answer} {seed}"], []),
            "image": ([f"<image>\nWhat {seed}?", answer], [image]),
            "video": (["Look: <video>\nWhat?", answer], [video]),
            "two questions": (["<video>\nWhat?", answer, f"And {seed}?", "so"], [video]),
            "image and video": ([f"<image> or <video> {seed}?", answer], [image, video]),
        }
        texts, media = rows[kind]
        turns = [Turn("assistant" if number % 2 else "user", text) for number, text in enumerate(texts)]
        template = PLAIN if kind == "plain text" else VICUNA_V1
        options = ConversationOptions(image_content_grid=2)
        return encode_conversation(turns, media, processor, template, options, sample_id=f"{kind}-{seed}")

    return make


def loss_and_gradients(model: Any, batch: Batch) -> tuple[float, int, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss, count = model.loss_sum(**batch["text"], **(batch["visual"] or {}))
    loss.backward()
    return (
        float(loss.detach()),
        int(count),
        {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None},
    )


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 9)), min_size=1, max_size=6))
@settings(max_examples=12, deadline=None)
def test_packed_equals_padded(model: Any, make_sample: Any, processor: Any, mix: list[tuple[str, int]]) -> None:
    samples = [make_sample(kind, seed) for kind, seed in mix]
    packed, padded = pack(samples, processor), collate(samples, processor)
    assert packed["text"]["input_ids"].shape == (1, sum(len(sample.input_ids) for sample in samples))
    assert packed["sample_ids"] == padded["sample_ids"]
    left, right = loss_and_gradients(model, packed), loss_and_gradients(model, padded)
    assert left[1] == right[1] > 0
    assert left[0] == pytest.approx(right[0], rel=1e-5)
    assert left[2].keys() == right[2].keys()
    assert len(left[2]) > 20
    for name, gradient in right[2].items():
        torch.testing.assert_close(left[2][name], gradient, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_samples_do_not_see_each_other(model: Any, make_sample: Any, processor: Any) -> None:
    """The second sample's hidden states are those of the sample alone, whatever stands in front of it."""
    second = make_sample("two questions", 3)
    with torch.no_grad():
        alone = _states(model, pack([second], processor))
        for kind in ("text", "image", "video"):
            first = make_sample(kind, 7)
            behind = _states(model, pack([first, second], processor))[:, len(first.input_ids) :]
            torch.testing.assert_close(behind, alone, rtol=1e-4, atol=1e-5)


def test_the_first_token_of_a_packed_sample_is_not_predicted(processor: Any, make_sample: Any) -> None:
    """Without a beginning token, a plain text row starts with a supervised token: the padded batch never counts it."""
    sample = make_sample("plain text", 1)
    open_row = EncodedSample(
        input_ids=sample.input_ids[1:],
        labels=sample.labels[1:],
        pixel_values=None,
        spans=sample.spans,
        content_grids=sample.content_grids,
        prompts=(),
        sample_id="open",
    )
    assert open_row.labels[0] != -100
    text = pack([open_row, open_row], processor)["text"]
    size = len(open_row.labels)
    assert text["labels"][0, [0, size]].tolist() == [-100, -100]
    assert text["labels"][0, 1:size].tolist() == open_row.labels[1:].tolist()
    assert open_row.labels[0] != -100, "the sample itself is not changed"
    assert text["position_ids"].tolist() == [[*range(size), *range(size)]]
    assert "attention_mask" not in text


def test_packed_text_runs_no_vision(
    model: Any, make_sample: Any, processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training the visual parts get zero gradients, which a data-parallel reducer waits for, without being run."""
    batch = pack([make_sample("text", 1), make_sample("text", 2)], processor)
    assert batch["visual"] is None
    monkeypatch.setattr(type(model), "encode_frames", None)
    monkeypatch.setattr(type(model), "visual_tokens", None)
    model.train()
    try:
        _, _, gradients = loss_and_gradients(model, batch)
    finally:
        model.eval()
    assert gradients.keys() == {name for name, _ in model.named_parameters()}
    visual = [name for name in gradients if not name.startswith("language_model")]
    assert visual and all(not gradients[name].any() for name in visual)


def _states(model: Any, batch: Batch) -> torch.Tensor:
    text = dict(batch["text"])
    del text["labels"]
    states: torch.Tensor = model(
        **text, **(batch["visual"] or {}), use_cache=False, output_hidden_states=True
    ).hidden_states[-1]
    return states

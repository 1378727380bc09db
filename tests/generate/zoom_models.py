"""A tiny random model, prompts with visual tokens, and a decoder whose words are made of ids."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from longvid_train.adaptation.zoom import ZoomChoice
from longvid_train.generate.decoding import AnswerDecoder
from longvid_train.generate.zoom.adjusting import COMPACT_SHARE
from longvid_train.generate.zoom.answering import ZoomAnswering, ZoomedPrompt
from longvid_train.tokens.grid import FrameGrid
from longvid_train.tokens.overview import ZoomPlan, plan_zoom
from tests.models import tiny_backbones

PLACEHOLDER = tiny_backbones.VIDEO_ID
SMALL = FrameGrid(rows=2, columns=2, end_tokens=1)
FULL = FrameGrid(rows=3, columns=3, end_tokens=1)
CLASSED_SMALL = FrameGrid(rows=2, columns=2, class_tokens=1)
CLASSED_FULL = FrameGrid(rows=3, columns=3, class_tokens=1)


class WordDecoder(AnswerDecoder):
    """Every id is a word; one of three ends a sentence. No id ends an answer but those given."""

    def text(self, ids: list[int]) -> str:
        return " ".join(f"W{number}." if number % 3 == 0 else f"W{number}" for number in ids)

    @property
    def end_token_ids(self) -> list[int]:
        return list(self.further_ends) or [95]

    @property
    def pad_token_id(self) -> int:
        return 0


def decoder_of(*ends: int) -> WordDecoder:
    return WordDecoder(SimpleNamespace(tokenizer=None), None, ends)  # type: ignore[arg-type]


def tiny_model(**language: Any) -> Any:
    """Attention far from uniform, three layers, no end token of its own."""
    with patch.dict(tiny_backbones.LANGUAGE, {"num_hidden_layers": 3, "eos_token_id": None, **language}):
        model = tiny_backbones.build("onevision")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                parameter.mul_(4)
    model.generation_config.eos_token_id = None
    return model


def plan_of(frames: int = 9, zoomed: int = 2, *, classed: bool = False) -> ZoomPlan:
    full, small = (CLASSED_FULL, CLASSED_SMALL) if classed else (FULL, SMALL)
    return plan_zoom(frames, full, small, zoomed_frames=zoomed)


def frame_tokens(plan: ZoomPlan, width: int) -> torch.Tensor:
    """``(frames of the overview, tokens in full, width)``."""
    generator = torch.Generator().manual_seed(11)
    return torch.randn(len(plan.shown), plan.zoomed_frame_tokens, width, generator=generator)


def prompt_of(model: Any, plan: ZoomPlan) -> ZoomedPrompt:
    """``[text, overview (with its end tokens), question]``."""
    width = model.config.text_config.hidden_size
    generator = torch.Generator().manual_seed(5)
    overview = torch.randn(plan.overview.visual_tokens, width, generator=generator)
    in_full = frame_tokens(plan, width)
    ids = torch.tensor([1, 7, *[PLACEHOLDER] * len(overview), 12, 13, 14, 15])
    return ZoomedPrompt(
        input_ids=ids,
        overview=overview,
        plan=plan,
        zoom_in=lambda chosen: in_full[list(chosen)].flatten(0, 1),
    )


def answering_of(
    model: Any,
    *ends: int,
    layers: range = range(1, 3),
    prefill_chunk: int = 16,
    compact_share: float = COMPACT_SHARE,
    sentence_attention: bool = True,
    **settings: Any,
) -> ZoomAnswering:
    return ZoomAnswering(
        model,
        decoder_of(*ends),
        ZoomChoice(**settings),
        layers,
        placeholder_id=PLACEHOLDER,
        prefill_chunk=prefill_chunk,
        compact_share=compact_share,
        sentence_attention=sentence_attention,
    )

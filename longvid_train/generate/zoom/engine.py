"""The engine of a backbone under a zoom: the overview's tokens are made once, frames in full for every question anew.

``N`` frames taken, ``n`` of them in the overview, ``T`` visual tokens of the overview, ``H`` language-model width.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from longvid_train.data.conversation import MediumLayout
from longvid_train.generate.engine import Answered, Asked, Engine, EngineOptions
from longvid_train.generate.options import GenerationOptions
from longvid_train.generate.streaming import OnText
from longvid_train.generate.zoom.answering import ZoomAnswering, ZoomedPrompt
from longvid_train.generate.zoom.prompting import ZoomPrompting
from longvid_train.models.backbones.load import AnyBackbone
from longvid_train.models.backbones.resized import resized
from longvid_train.models.backbones.video import FRAME_CHUNK, streamed_tokens
from longvid_train.tokens.overview import ZoomPlan


@dataclass(frozen=True, eq=False)
class PreparedFrames:
    """``n`` frames preprocessed twice: ``(n, 3, side, side)`` in full, and ``(n, 3, small, small)``."""

    full: torch.Tensor
    small: torch.Tensor


@dataclass(frozen=True, eq=False)
class KeptVideo:
    """What questions need of a video.

    Attributes:
        plan: of it.
        overview: ``(T, H)``, tokens after the video included.
        pixels: ``(n, 3, side, side)`` in the model's dtype on the CPU, the overview's frames in full.
    """

    plan: ZoomPlan
    overview: torch.Tensor
    pixels: torch.Tensor


class ZoomEngine(Engine):
    """See `Engine`. Prompts are answered one by one: each chooses frames of its own.

    Args:
        backbone: loaded.
        prompting: of the same checkpoint.
        options: see `EngineOptions`.
    """

    def __init__(self, backbone: AnyBackbone, prompting: ZoomPrompting, options: EngineOptions) -> None:
        super().__init__(backbone.model, prompting, options)
        self.backbone = backbone
        self._zoom_prompting = prompting
        self._small = resized(backbone, prompting.planned.small_facts.image_side)
        self._answering = ZoomAnswering(
            backbone.model,
            prompting.decoder,
            prompting.zoom,
            prompting.layers,
            placeholder_id=prompting.processor.visual_token_id,
            prefill_chunk=options.prefill_chunk,
            sentence_attention=options.sentence_attention,
        )

    @property
    def frame_chunk(self) -> int:
        """As set, or `FRAME_CHUNK`."""
        return self.options.frame_chunk or FRAME_CHUNK

    def prepare(self, frames: NDArray[np.uint8]) -> PreparedFrames:
        """``(n, height, width, 3)`` uint8 RGB -> both sizes."""
        return PreparedFrames(
            full=self.preprocess(frames), small=self._zoom_prompting.planned.small_pictures.pixel_values(frames)
        )

    @torch.no_grad()
    def keep(self, chunks: Iterable[PreparedFrames], layout: MediumLayout) -> KeptVideo:
        """Encode the overview; keep its frames' pixels for the zoom."""
        plan = self._zoom_prompting.planned.zoom_plan(layout.frame_count)
        pixels: list[torch.Tensor] = []
        overview = streamed_tokens(
            self._small,
            self._shown(chunks, plan, pixels),
            plan.overview,
            frame_chunk=self.frame_chunk,
            store_device=self.store_device,
        )
        return KeptVideo(plan, overview, torch.cat(pixels))

    def _shown(
        self, chunks: Iterable[PreparedFrames], plan: ZoomPlan, pixels: list[torch.Tensor]
    ) -> Iterator[torch.Tensor]:
        """Small pictures of the overview's frames; the full ones go to ``pixels``."""
        shown, come = set(plan.shown), 0
        for chunk in chunks:
            inside = [place for place in range(len(chunk.full)) if come + place in shown]
            come += len(chunk.full)
            if inside:
                pixels.append(chunk.full[inside].to(device="cpu", dtype=self.model.dtype))
                yield chunk.small[inside]

    def visual_tokens(self, asked: Asked) -> torch.Tensor:
        """``(T, H)``: those of the overview."""
        kept: KeptVideo = asked.kept[asked.shown[0]]
        return kept.overview

    @torch.no_grad()
    def answer(
        self, prompts: Sequence[Asked], options: GenerationOptions, on_text: OnText | None = None
    ) -> list[Answered]:
        """Answer prompts one after the other; see `Engine.answer`."""
        for asked in prompts:
            self.prompting.check_cache(self.model, asked.counts)
        return [self._answer(asked, options, on_text) for asked in prompts]

    def _answer(self, asked: Asked, options: GenerationOptions, on_text: OnText | None) -> Answered:
        kept: KeptVideo = asked.kept[asked.shown[0]]
        prompt = ZoomedPrompt(
            input_ids=asked.sample.input_ids,
            overview=kept.overview,
            plan=kept.plan,
            zoom_in=lambda chosen: self._in_full(kept, chosen),
        )
        cache = self.new_cache()
        with self.reading(self.extension(asked.counts)):
            outcome = self._answering.answer(prompt, options, on_text, cache=cache)
        return Answered(outcome.generated, None if cache is None else cache.used_bytes(), outcome)

    def _in_full(self, kept: KeptVideo, chosen: tuple[int, ...]) -> torch.Tensor:
        """``(k P, H)``: tokens of chosen frames in full, without those after a video."""
        places, plan = kept.plan.zoomed(chosen)
        tokens = streamed_tokens(
            self.backbone,
            torch.split(kept.pixels[list(places)], self.frame_chunk),
            plan,
            frame_chunk=self.frame_chunk,
            store_device=self.store_device,
        )
        return tokens[: plan.frame_tokens]

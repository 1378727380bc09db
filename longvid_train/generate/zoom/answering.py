"""One answer under a zoom (ZoomVLM, Algorithm 1).

1. Text and overview pass the language model; ``s`` tokens are generated.
2. The last query's attention, averaged over a band of layers and each frame's tokens, chooses ``k`` frames (Eq. 7, 8).
3. The ``s`` tokens leave the cache, and what stood behind the overview; the chosen frames in full take its place, and
   what stood behind the overview is read again behind them. Keys and values of the text in front and of the overview
   are used as they are, at the positions they have. The answer is generated from its first token on.
4. While it is, visual tokens are copied and dropped at sentence ends (`adjusting`).

On the order: Eq. 9 writes ``[T, P_overview, P_chosen, x]``, text first. In these models' prompts the question stands
behind the video, and keys of a question that was read before the chosen frames know nothing of them, so the default
reads the question again (a few dozen tokens, in the same pass as the frames): prompt and cache are then those of a
video that shows the overview and, behind it, the chosen frames. ``zoomed_after: question`` follows the equation to the
letter: all of the prompt but its last token is kept, the chosen frames stand behind the question.

Everything is transformers' own ``generate``; without zoom and adjustment it is that call and nothing else. The model is
watched while somebody needs its attention: until frames are chosen, and further for adjustments and for sentences.

``S`` tokens of the prompt, ``T`` visual tokens, ``H`` language-model width.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from transformers.cache_utils import Cache

from longvid_train.adaptation.zoom import ZoomChoice
from longvid_train.generate.decoding import AnswerDecoder, Generated
from longvid_train.generate.generation import generate_prompts
from longvid_train.generate.options import GenerationOptions
from longvid_train.generate.streaming import OnText
from longvid_train.generate.zoom.adjusting import COMPACT_SHARE, Adjusted, TokenAdjuster
from longvid_train.generate.zoom.answer_watch import AnswerWatch, OnSentences, synchronize
from longvid_train.generate.zoom.pictures import Pictures, overview_pictures, zoomed_pictures
from longvid_train.generate.zoom.sentences import split_sentences
from longvid_train.generate.zoom.trace import (
    Adjustment,
    ModuleSeconds,
    Sentence,
    TracedFrame,
    TracedPicture,
    ZoomTrace,
)
from longvid_train.kvcache.thinning import ThinningCache
from longvid_train.kvcache.watch import AttentionWatch, watching
from longvid_train.tokens.overview import ZoomPlan


@dataclass(frozen=True, kw_only=True, eq=False)
class ZoomedPrompt:
    """One question about an overview.

    Attributes:
        input_ids: ``(S,)`` int64 with one placeholder a visual token of the overview.
        overview: ``(T, H)`` its visual tokens, those after the video included.
        plan: of the video.
        zoom_in: chosen places in the overview, ascending, to the ``(k P, H)`` tokens of these frames in full.
    """

    input_ids: torch.Tensor
    overview: torch.Tensor
    plan: ZoomPlan
    zoom_in: Callable[[tuple[int, ...]], torch.Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class ZoomOutcome:
    """An answer and everything that was noted about it.

    Attributes:
        generated: the answer.
        cache: as it was read last.
        trace: without question, video and times, which `told` adds.
    """

    generated: Generated
    cache: Cache
    trace: ZoomTrace

    def told(self, *, question: str, video: str, times_s: tuple[float, ...], overview_encode_s: float) -> ZoomTrace:
        """The trace with what only the caller knows.

        Args:
            question: as asked.
            video: path of the video.
            times_s: of every frame taken.
            overview_encode_s: seconds of the overview in the tower, for this answer.
        """
        trace = self.trace
        return replace(
            trace,
            question=question,
            video=video,
            overview=tuple(replace(one, time_s=times_s[one.frame]) for one in trace.overview),
            pictures=tuple(replace(one, time_s=times_s[one.frame]) for one in trace.pictures),
            seconds=replace(trace.seconds, overview_encode_s=overview_encode_s),
        )


@dataclass(eq=False)
class _Notes:
    """What the trace will hold, as it comes."""

    scores: list[float] | None = None
    chosen: tuple[int, ...] = ()
    draft: str = ""
    draft_tokens: int = 0
    sentences: list[Sentence] = field(default_factory=list)
    adjustments: list[Adjustment] = field(default_factory=list)
    seconds: ModuleSeconds = field(default_factory=ModuleSeconds)
    lines: list[str] = field(default_factory=list)
    attention: tuple[int, torch.Tensor] | None = None


class ZoomAnswering:
    """How one model answers under one zoom.

    Args:
        model: transformers' model, in eval mode.
        decoder: see `AnswerDecoder`.
        settings: the zoom.
        layers: band whose attention counts.
        placeholder_id: stands for one visual token.
        prefill_chunk: positions of a prompt that pass the decoder at once.
        compact_share: see `TokenAdjuster`.
        sentence_attention: whether traces hold sentences, with the attention at each one's end.
    """

    def __init__(
        self,
        model: Any,
        decoder: AnswerDecoder,
        settings: ZoomChoice,
        layers: range,
        *,
        placeholder_id: int,
        prefill_chunk: int,
        compact_share: float = COMPACT_SHARE,
        sentence_attention: bool = True,
    ) -> None:
        self.model = model
        self.decoder = decoder
        self.settings = settings
        self.layers = layers
        self._placeholder_id = placeholder_id
        self._prefill_chunk = prefill_chunk
        self._compact_share = compact_share
        self._sentence_attention = sentence_attention

    @torch.no_grad()
    def answer(
        self,
        prompt: ZoomedPrompt,
        options: GenerationOptions,
        on_text: OnText | None = None,
        *,
        cache: Cache | None = None,
    ) -> ZoomOutcome:
        """Answer one question.

        Args:
            prompt: the question, about the overview.
            options: how tokens are chosen; one beam.
            on_text: receives the answer's text as it grows; the draft is not passed on.
            cache: an empty one; a quantized one needs ``attending_on_codes`` around the call. Default: full precision.

        Raises:
            UserError: the model's attention is not SDPA, or the band lies outside its layers.
        """
        if cache is None:
            cache = ThinningCache(self.model.config.get_text_config(decoder=True).num_hidden_layers)
        notes, watch = _Notes(), AttentionWatch(self.layers)
        placeholders = (prompt.input_ids == self._placeholder_id).nonzero().flatten()
        pictures = overview_pictures(prompt.plan, placeholders)
        generated = None
        with watching(self.model, watch):
            if prompt.plan.zoomed_frames:
                generated = self._draft(prompt, options, cache, notes)
                if generated is None:
                    prompt, pictures = self._zoomed(prompt, pictures, watch, cache, notes)
                else:
                    self._note_last_sentences(
                        generated, pictures, TokenAdjuster(watch, pictures.positions, cache), notes
                    )
        if generated is None:
            with self._watching_answer(watch):
                generated = self._generate(prompt, pictures, options, watch, cache, notes, on_text)
        elif on_text is not None:
            on_text(generated.text)
        return ZoomOutcome(generated=generated, cache=cache, trace=self._trace(prompt, pictures, generated, notes))

    def _draft(
        self,
        prompt: ZoomedPrompt,
        options: GenerationOptions,
        cache: Cache,
        notes: _Notes,
    ) -> Generated | None:
        """Generate ``s`` tokens from the overview; an answer that has ended by then is the result."""
        steps = min(self.settings.draft_tokens, options.max_new_tokens)
        if steps < self.settings.draft_tokens:
            notes.lines.append(
                f"frames were chosen after {steps} tokens, not draft_tokens = {self.settings.draft_tokens}: answers "
                f"have at most {steps} (--max-new-tokens)"
            )
        begun = time.perf_counter()
        generated, watched = self._run(prompt, replace(options, max_new_tokens=steps), cache, None, None)
        total_s = time.perf_counter() - begun
        notes.seconds = replace(notes.seconds, prefill_s=watched.first_token_s, draft_s=total_s - watched.first_token_s)
        notes.draft, notes.draft_tokens = generated.text, generated.new_tokens
        if watched.ids[-1] not in self.decoder.end_token_ids:
            return None
        notes.lines.append(
            f"the answer ended after {generated.new_tokens} tokens, before frames were chosen (draft_tokens = "
            f"{self.settings.draft_tokens}): the overview's answer stands"
        )
        return generated

    def _zoomed(
        self, prompt: ZoomedPrompt, pictures: Pictures, watch: AttentionWatch, cache: Cache, notes: _Notes
    ) -> tuple[ZoomedPrompt, Pictures]:
        """Choose frames and put them in full behind the overview: a longer prompt, of which the cache holds a part."""
        clock = _Clock(self.model.device)
        scores = frame_scores(watch.row().cpu(), pictures)
        chosen = top_frames(scores, prompt.plan.zoomed_frames)
        notes.scores, notes.chosen = scores.tolist(), chosen
        scoring_s = clock.lap()
        tokens = prompt.zoom_in(chosen)
        notes.seconds = replace(notes.seconds, scoring_s=scoring_s, zoom_encode_s=clock.lap())
        kept = self._kept(prompt, pictures)
        cache.crop(kept - cache.get_seq_length())
        watch.forget()
        zoomed = zoomed_pictures(prompt.plan, chosen, kept)
        assert len(tokens) == len(zoomed.positions)
        return _with_zoomed(prompt, tokens, kept, self._placeholder_id), pictures.and_zoomed(zoomed)

    def _kept(self, prompt: ZoomedPrompt, pictures: Pictures) -> int:
        """Positions of the overview's prompt that stay in the cache."""
        if self.settings.zoomed_after == "question":
            return len(prompt.input_ids) - 1
        return int(pictures.positions[-1]) + 1

    @property
    def _reads_sentences(self) -> bool:
        return self._sentence_attention or self.settings.adjusted_tokens > 0

    def _watching_answer(self, watch: AttentionWatch) -> AbstractContextManager[None]:
        """Sentence ends need the answer's attention; without them the model runs alone."""
        return watching(self.model, watch) if self._reads_sentences else nullcontext()

    def _generate(
        self,
        prompt: ZoomedPrompt,
        pictures: Pictures,
        options: GenerationOptions,
        watch: AttentionWatch,
        cache: Cache,
        notes: _Notes,
        on_text: OnText | None,
    ) -> Generated:
        """Generate the answer, adjusting tokens at sentence ends."""
        adjuster = TokenAdjuster(watch, pictures.positions, cache, compact_share=self._compact_share)
        every, most = self.settings.every_sentences, self.settings.adjusted_tokens
        complete = 0

        def on_sentences(sentences: list[str], new_tokens: int) -> None:
            nonlocal complete
            before, complete = complete, len(sentences)
            due = most > 0 and complete // every > before // every
            if not (due or self._sentence_attention):
                return
            attention = adjuster.attention()
            if self._sentence_attention:
                notes.attention = new_tokens, attention
                notes.sentences += [_sentence(text, new_tokens, attention, pictures) for text in sentences[before:]]
            if due:
                adjusted = adjuster.adjust(most, attention)
                notes.adjustments.append(_adjustment(adjusted, adjuster.tokens, pictures, complete, new_tokens))

        begun = time.perf_counter()
        generated, watched = self._run(prompt, options, cache, on_text, on_sentences if self._reads_sentences else None)
        rest_s = time.perf_counter() - begun - watched.first_token_s
        first = "zoom_prefill_s" if notes.chosen else "prefill_s"
        notes.seconds = replace(
            notes.seconds,
            **{first: watched.first_token_s},
            generate_s=rest_s - watched.spent_s,
            adjustment_s=watched.spent_s,
        )
        self._note_last_sentences(generated, pictures, adjuster, notes)
        return generated

    def _note_last_sentences(
        self, generated: Generated, pictures: Pictures, adjuster: TokenAdjuster, notes: _Notes
    ) -> None:
        """What no further token has confirmed as a sentence: the last one, finished or not."""
        if not self._sentence_attention:
            return
        sentences, rest = split_sentences(generated.text)
        missing = [*sentences, *([rest] if rest else [])][len(notes.sentences) :]
        if not missing:
            return
        seen = notes.attention
        attention = seen[1] if seen is not None and seen[0] == generated.new_tokens else adjuster.attention()
        notes.sentences += [_sentence(text, generated.new_tokens, attention, pictures) for text in missing]

    def _run(
        self,
        prompt: ZoomedPrompt,
        options: GenerationOptions,
        cache: Cache,
        on_text: OnText | None,
        on_sentences: OnSentences | None,
    ) -> tuple[Generated, AnswerWatch]:
        synchronize(self.model.device)
        watched = AnswerWatch(self.decoder.text, len(prompt.input_ids), on_sentences)
        (generated,) = generate_prompts(
            self.model,
            self.decoder,
            [prompt.input_ids],
            [prompt.overview],
            options,
            on_text,
            placeholder_id=self._placeholder_id,
            prefill_chunk=self._prefill_chunk,
            cache=cache,
            stopping=watched,
        )
        return generated, watched

    def _trace(self, prompt: ZoomedPrompt, pictures: Pictures, generated: Generated, notes: _Notes) -> ZoomTrace:
        plan = prompt.plan
        scores: list[float] | list[None] = notes.scores or [None] * len(plan.shown)
        tokens = pictures.split(pictures.positions)
        zoom_tokens = sum(
            len(own) for own, picture in zip(tokens, pictures.shown, strict=True) if picture.pathway == "zoom"
        )
        return ZoomTrace(
            question="",
            answer=generated.text,
            video="",
            settings=asdict(self.settings),
            layers=(self.layers[0], self.layers[-1]),
            frames_taken=plan.frames,
            overview=tuple(
                TracedFrame(frame=frame, time_s=0.0, score=scores[place], chosen=place in notes.chosen)
                for place, frame in enumerate(plan.shown)
            ),
            pictures=tuple(
                TracedPicture(
                    pathway=one.pathway,
                    frame=one.frame,
                    time_s=0.0,
                    rows=one.rows,
                    columns=one.columns,
                    class_tokens=one.class_tokens,
                )
                for one in pictures.shown
            ),
            overview_tokens=plan.overview.visual_tokens,
            zoom_tokens=zoom_tokens,
            draft=notes.draft,
            draft_tokens=notes.draft_tokens,
            sentences=tuple(notes.sentences),
            adjustments=tuple(notes.adjustments),
            seconds=notes.seconds,
            new_tokens=generated.new_tokens,
            notes=tuple(notes.lines),
        )


def frame_scores(row: torch.Tensor, pictures: Pictures) -> torch.Tensor:
    """Eq. 7: attention ``(S,)`` averaged over each picture's tokens, class tokens included; ``(pictures,)``."""
    return torch.stack([own.mean() for own in pictures.split(row[pictures.positions])])


def top_frames(scores: torch.Tensor, count: int) -> tuple[int, ...]:
    """Eq. 8: the ``count`` highest, ascending in time; of equal scores the earlier."""
    return tuple(sorted(scores.argsort(descending=True, stable=True)[:count].tolist()))


def _with_zoomed(prompt: ZoomedPrompt, tokens: torch.Tensor, kept: int, placeholder_id: int) -> ZoomedPrompt:
    """The prompt with frames in full behind its first ``kept`` positions."""
    ids, before = prompt.input_ids, int((prompt.input_ids[:kept] == placeholder_id).sum())
    return replace(
        prompt,
        input_ids=torch.cat([ids[:kept], ids.new_full((len(tokens),), placeholder_id), ids[kept:]]),
        overview=torch.cat([prompt.overview[:before], tokens.to(prompt.overview.device), prompt.overview[before:]]),
    )


def _sentence(text: str, new_tokens: int, attention: torch.Tensor, pictures: Pictures) -> Sentence:
    of_pictures = pictures.split(attention)
    cells = (own[one.class_tokens :] for own, one in zip(of_pictures, pictures.shown, strict=True))
    return Sentence(
        text=text,
        new_tokens=new_tokens,
        frame_mass=tuple(float(own.sum()) for own in of_pictures),
        cell_mass=tuple(tuple(own.tolist()) for own in cells),
    )


def _adjustment(
    adjusted: Adjusted, visual_tokens: int, pictures: Pictures, sentences: int, new_tokens: int
) -> Adjustment:
    return Adjustment(
        sentences=sentences,
        new_tokens=new_tokens,
        copied=pictures.token_places(adjusted.copied),
        dropped=pictures.token_places(adjusted.dropped),
        visual_tokens=visual_tokens,
    )


class _Clock:
    """Seconds since the last lap, after the device has finished."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last = time.perf_counter()

    def lap(self) -> float:
        synchronize(self._device)
        now = time.perf_counter()
        spent, self._last = now - self._last, now
        return spent

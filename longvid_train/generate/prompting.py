"""Questions to token ids by the data room's own rules, and whether they fit the window; no weights are needed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from longvid_train.adaptation.settings import Adaptation
from longvid_train.data.conversation import (
    ConversationOptions,
    EncodedSample,
    LoadedMedium,
    MediumLayout,
    encode_prompt,
    shown_media,
    token_counts,
)
from longvid_train.data.manifest import MediaType, Turn
from longvid_train.data.processing import MultimodalProcessor
from longvid_train.data.row_checks import PLACEHOLDER
from longvid_train.data.templates import Template
from longvid_train.errors import UserError
from longvid_train.generate.compression import CacheCompression, window_words
from longvid_train.generate.decoding import AnswerDecoder
from longvid_train.generate.options import GenerationOptions
from longvid_train.kvcache.rotation import Rotation
from longvid_train.rope.extension import Extension, prepare
from longvid_train.rope.rotary import find_rotary
from longvid_train.rope.scale import Extent, TokenCounts, TrainedWindows, extent_of
from longvid_train.tokens.plan import TokenPlan


@dataclass(frozen=True, kw_only=True)
class PromptCounts:
    """Exact tokens of an open conversation.

    Attributes:
        text: all that are not visual.
        visual: visual tokens, of earlier questions too.
        frames: of these, the ones that a visual window measures: without tokens after a video.
    """

    text: int
    visual: int
    frames: int

    @property
    def total(self) -> int:
        """Length of the prompt."""
        return self.text + self.visual


class Prompting(ABC):
    """How one checkpoint is asked under one adaptation.

    Args:
        processor: of the checkpoint under the adaptation: counts the visual tokens of every frame.
        template: how turns become text.
        options: content grids and media per turn; ``max_tokens`` is ignored, the window rules.
        adaptation: how videos are shown and how the window is extended.
        trained: windows the checkpoint was trained on, in tokens.
        rope: how its window came about, for messages, e.g. ``"rope linear x4"``; empty when it is the model's own.
        further_ends: see `AnswerDecoder`.
        compression: of the KV cache, where the adaptation asks for one.
    """

    def __init__(
        self,
        processor: MultimodalProcessor,
        template: Template,
        options: ConversationOptions,
        adaptation: Adaptation,
        trained: TrainedWindows,
        *,
        rope: str = "",
        further_ends: tuple[int, ...] = (),
        compression: CacheCompression | None = None,
    ) -> None:
        assert (compression is None) == (adaptation.cache is None), "read_compression gives what the adaptation says"
        self.processor = processor
        self.template = template
        self.options = options
        self.adaptation = adaptation
        self.trained = trained
        self.rope = rope
        self.compression = compression
        self.decoder = AnswerDecoder(processor, template, further_ends)

    @abstractmethod
    def plan(self, layout: MediumLayout) -> TokenPlan | None:
        """The token plan of a medium; ``None`` where the model shows it without one.

        Raises:
            UserError: the plan does not fit its frames or the model's grid, or the model shows no such medium.
        """

    @abstractmethod
    def skeleton(self) -> nn.Module:
        """The model without weights, on torch's meta device."""

    @property
    @abstractmethod
    def joint_frames(self) -> int:
        """Frames must come in multiples of this."""

    @property
    @abstractmethod
    def trained_frames(self) -> int | None:
        """Frames of a training video; ``None`` where that is not stated."""

    def encode(self, turns: Sequence[Turn], layouts: Sequence[MediumLayout]) -> EncodedSample:
        """Ids, spans and prompts of an open conversation: the ids of training up to the answer.

        ``pixel_values`` is an empty ``(F, 0)``: the frames are counted, their features come from elsewhere.

        Raises:
            UserError: the model cannot be shown these media, or not there.
        """
        media = [LoadedMedium(layout, torch.empty(layout.frame_count, 0)) for layout in layouts]
        unbounded = replace(self.options, max_tokens=2**62)
        return encode_prompt(turns, media, self.processor, self.template, unbounded)

    def counts(self, turns: Sequence[Turn], layouts: Sequence[MediumLayout]) -> PromptCounts:
        """Exact tokens of an open conversation; raises as `encode`."""
        counted = token_counts(turns, layouts, self.processor, self.template, self.options)
        plans = [self.plan(layouts[number]) for number in shown_media(turns, self.options)]
        ends = sum(plan.grid.end_tokens for plan in plans if plan is not None)
        return PromptCounts(text=counted.text, visual=counted.visual, frames=counted.visual - ends)

    @property
    def window(self) -> int:
        """Tokens the language model was trained on, the answer included."""
        return self.trained.language

    def token_counts(self, turns: Sequence[Turn], layouts: Sequence[MediumLayout], max_new_tokens: int) -> TokenCounts:
        """What a window measures: the prompt, and the tokens that may be generated."""
        counts = self.counts(turns, layouts)
        return TokenCounts(visual=counts.frames, total=counts.total + max_new_tokens)

    def extent(self, turns: Sequence[Turn], layouts: Sequence[MediumLayout], max_new_tokens: int) -> Extent:
        """How far the window reaches for a conversation.

        Raises:
            UserError: it does not fit.
        """
        return extent_of(self.adaptation.window, self.token_counts(turns, layouts, max_new_tokens), self.trained)

    def extension(self, model: nn.Module, counts: TokenCounts) -> Extension | None:
        """What the window does to a model, or to a `skeleton`; ``None`` when it never changes one.

        Raises:
            UserError: the input does not fit, or the model's frequencies cannot be extended this way.
        """
        if not self.adaptation.window.extends:
            return None
        return prepare(model, self.adaptation.window, counts=counts, trained=self.trained)

    def check_cache(self, model: nn.Module, counts: TokenCounts) -> None:
        """Refuse an input for which the model, or a `skeleton`, rotates otherwise than the cache's calibration.

        Raises:
            UserError: naming both windows; or as `extension`.
        """
        if self.compression is None or self.compression.quantizer.rotation is None:
            return
        extension, rotary = self.extension(model, counts), find_rotary(model)
        if extension is None:
            rotation = Rotation(rotary.inv_freq, rotary.attention_scaling)
        else:
            rotation = Rotation(extension.inv_freq, extension.attention_scaling)
        scale = None if extension is None else extension.scale
        self.compression.check_rotation(rotation, window_words(self.adaptation, scale))

    def fits(self, layouts: Sequence[MediumLayout], questions: Sequence[str], max_new_tokens: int) -> bool:
        """Whether a whole conversation fits the window, each answer counted as ``max_new_tokens``."""
        turns = unanswered(questions, [layout.type for layout in layouts])
        return self._reaches(turns, layouts, max_new_tokens * len(questions))

    def check_window(self, turns: Sequence[Turn], layouts: Sequence[MediumLayout], max_new_tokens: int) -> None:
        """Raise unless the conversation and its answer fit the window; nothing needs to be decoded.

        Raises:
            UserError: naming frames, tokens, the window and the number to change; or as `encode`.
        """
        counts = self.counts(turns, layouts)
        window = self.adaptation.window
        try:
            self.extent(turns, layouts, max_new_tokens)
        except UserError as error:
            total = counts.total + max_new_tokens
            limit = f": {error}"
            if not window.extends and window.measure == "language":
                rope = f" ({self.rope})" if self.rope else ""
                limit = f", more than the language model's window of {self.window} tokens{rope}"
            raise UserError(
                f"{_shown(turns, layouts)} make {counts.visual} visual tokens; with {counts.text} text tokens and "
                f"{max_new_tokens} new tokens that is {total}{limit}; {self._remedy(turns, layouts, max_new_tokens)}"
            ) from None

    def plan_words(self, layouts: Sequence[MediumLayout]) -> str:
        """How the frames are shown, one part a medium with a plan; empty without plans."""
        plans = [lines for layout in layouts if (lines := self.plan_lines(layout))]
        return "; ".join(f"{self.plan_kind}, {lines[0]}" for lines in plans)

    @property
    def plan_kind(self) -> str:
        """What the way of showing videos is called."""
        return self.adaptation.plan.kind

    def plan_lines(self, layout: MediumLayout) -> list[str]:
        """Lines for the user about how a medium is shown, the first in numbers; none without a plan."""
        plan = self.plan(layout)
        return [] if plan is None else self.adaptation.plan_notes(plan)

    @property
    def least_frames(self) -> int:
        """Frames without which a video cannot be shown."""
        return self.adaptation.plan.least_frames

    def check_generation(self, options: GenerationOptions) -> None:
        """Raise unless answers can be drawn this way.

        Raises:
            UserError: beams, where the adaptation zooms: they would look at different frames.
        """
        if options.num_beams > 1 and self.adaptation.zoom is not None:
            raise UserError(
                f"num_beams is {options.num_beams}, and the adaptation zooms: frames are chosen for one answer; use 1"
            )

    def notes(self, layouts: Sequence[MediumLayout], counts: TokenCounts) -> list[str]:
        """Lines for the user: what is shown of each medium, and what an unextended window means for it."""
        lines = [line for layout in layouts for line in self.plan_lines(layout)]
        trained = self.trained.visual
        if not self.adaptation.window.extends and trained is not None and counts.visual > trained:
            lines.append(
                f"{counts.visual} visual tokens are more than the {trained} of its training videos, and the window is "
                "not extended; try --adaptation configs/adaptations/visual_yarn.yaml"
            )
        return lines

    def _reaches(self, turns: Sequence[Turn], layouts: Sequence[MediumLayout], max_new_tokens: int) -> bool:
        counts = self.token_counts(turns, layouts, max_new_tokens)
        try:
            extent_of(self.adaptation.window, counts, self.trained)
        except UserError:
            return False
        return True

    def _remedy(self, turns: Sequence[Turn], layouts: Sequence[MediumLayout], max_new_tokens: int) -> str:
        step = self.joint_frames
        least = -(-self.least_frames // step)

        def fits(index: int) -> bool:
            cap = (least + index - 1) * step
            capped = [replace(layout, lines_after_frame=folded_lines(layout, cap)) for layout in layouts]
            return self._reaches(turns, capped, max_new_tokens)

        longest = max((layout.frame_count for layout in layouts if layout.type == "video"), default=0)
        most = largest(fits, longest // step - least + 1)
        if most:
            frames = (least + most - 1) * step
            return f"show at most {frames} frames{' of each video' if len(layouts) > 1 else ''} (--frames {frames})"
        return "lower the new tokens (--max-new-tokens) or ask in fewer words"


def folded_lines(layout: MediumLayout, cap: int) -> tuple[tuple[str, ...], ...]:
    """The first ``cap`` frames' lines, all later lines behind the last of them (lengths do not care)."""
    lines = layout.lines_after_frame
    if len(lines) <= cap:
        return lines
    rest = tuple(line for later in lines[cap - 1 :] for line in later)
    return (*lines[: cap - 1], rest)


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to ``most`` that fits, where every smaller one fits too; 0 if none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def first_question(question: str, media: Sequence[MediaType]) -> Turn:
    """The turn that shows the media: in front of the question, or where it says ``<video>`` and ``<image>``.

    Raises:
        UserError: the question is blank, or its placeholders are not the media in their order.
    """
    _check_filled(question)
    written = PLACEHOLDER.findall(question)
    if not written:
        shown = "".join(f"<{kind}>" for kind in media)
        return Turn("user", f"{shown}\n{question}" if shown else question)
    if written != list(media):
        raise UserError(
            f"the question shows {written} but the media are {list(media)}; write one placeholder for each, in order, "
            "or none"
        )
    return Turn("user", question)


def next_question(question: str) -> Turn:
    """A follow-up turn.

    Raises:
        UserError: the question is blank or holds a placeholder.
    """
    _check_filled(question)
    if PLACEHOLDER.search(question):
        raise UserError(
            f"the follow-up question {question!r} holds a placeholder; only the first question places media"
        )
    return Turn("user", question)


def unanswered(questions: Sequence[str], media: Sequence[MediaType]) -> list[Turn]:
    """The turns of a whole conversation with empty answers: the least it can take.

    Raises:
        UserError: see `first_question` and `next_question`.
    """
    turns = [first_question(questions[0], media)]
    for question in questions[1:]:
        turns += [Turn("assistant", ""), next_question(question)]
    return turns


def rope_words(parameters: dict[str, Any] | None) -> str:
    """A configuration's rotary scaling for messages; empty without one."""
    kind = (parameters or {}).get("rope_type", "default")
    if parameters is None or kind == "default":
        return ""
    return f"rope {kind} x{parameters.get('factor', '?')}"


def _shown(turns: Sequence[Turn], layouts: Sequence[MediumLayout]) -> str:
    frames = sum(layout.frame_count for layout in layouts)
    questions = sum(turn.role == "user" for turn in turns)
    return f"{frames} frames, shown with each of {questions} questions," if questions > 1 else f"{frames} frames"


def _check_filled(question: str) -> None:
    if not question.strip():
        raise UserError('the question is empty; write one, e.g. "What happens in the video?"')

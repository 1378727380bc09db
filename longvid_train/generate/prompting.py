"""Questions to token ids by the data room's own rules, and whether they fit the language model's window."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from longvid_train.data.conversation import (
    ConversationOptions,
    EncodedSample,
    LoadedMedium,
    MediumLayout,
    encode_prompt,
    sequence_length,
)
from longvid_train.data.manifest import MediaType, Turn
from longvid_train.data.processing import MultimodalProcessor
from longvid_train.data.row_checks import PLACEHOLDER
from longvid_train.data.templates import VICUNA_V1, ChatTemplate, template_by_name
from longvid_train.errors import UserError
from longvid_train.models.adapter import Adapter
from longvid_train.models.llama_vid.configuration import LlamaVidConfig
from longvid_train.models.llama_vid.loading import read_model_type
from longvid_train.models.llama_vid.processing import LlamaVidProcessor


@dataclass(frozen=True, kw_only=True)
class Prompting:
    """Everything about prompts that can be known without weights.

    Attributes:
        processor: the model's.
        window: tokens the language model can take, answer included (``max_position_embeddings``).
        rope: how the window came about, for messages, e.g. ``"rope linear x4"``; empty when it is the model's own.
        template: how turns become text; the one the model was trained with.
        options: content grids and media per turn, as in training; ``max_tokens`` is ignored, the window rules.
    """

    processor: MultimodalProcessor
    window: int
    rope: str = ""
    template: ChatTemplate = VICUNA_V1
    options: ConversationOptions = field(default_factory=ConversationOptions)

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        adapter: Adapter | None = None,
        template: ChatTemplate | None = None,
        options: ConversationOptions | None = None,
    ) -> "Prompting":
        """Read a LLaMA-VID folder's configuration and processor, not its weights.

        Args:
            folder: the checkpoint.
            adapter: trained on the checkpoint; its processor and window are used.
            template: default: the one the checkpoint was trained with.
            options: default: the content grids it was trained with.

        Raises:
            UserError: no such folder, another architecture, or a file is missing.
        """
        read_model_type(Path(folder), LlamaVidConfig.model_type)
        config = LlamaVidConfig.from_pretrained(folder, local_files_only=True)
        text_config = (config if adapter is None else adapter.adapt_config(config)).text_config
        processor = LlamaVidProcessor.from_pretrained(folder if adapter is None else adapter.folder)
        return cls(
            processor=processor,
            window=int(text_config.max_position_embeddings),
            rope=_rope_words(text_config.rope_parameters),
            template=template or template_by_name(processor.settings.template),
            options=options
            or ConversationOptions(
                image_content_grid=processor.settings.image_content_grid,
                video_content_grid=processor.settings.video_content_grid,
            ),
        )

    def prompt_tokens(self, turns: Sequence[Turn], layouts: Sequence[MediumLayout]) -> int:
        """Exact tokens of an open conversation, visual tokens included."""
        return sequence_length(turns, layouts, self.processor, self.template, self.options)

    def fits(self, layouts: Sequence[MediumLayout], questions: Sequence[str], max_new_tokens: int) -> bool:
        """Whether a whole conversation fits the window, each answer counted as ``max_new_tokens``."""
        turns = unanswered(questions, [layout.type for layout in layouts])
        return self.prompt_tokens(turns, layouts) + max_new_tokens * len(questions) <= self.window

    def check_window(self, turns: Sequence[Turn], layouts: Sequence[MediumLayout], max_new_tokens: int) -> None:
        """Raise unless the conversation and its answer fit the window; nothing needs to be decoded.

        Raises:
            UserError: naming frames, tokens, the window and the number to change.
        """
        prompt = self.prompt_tokens(turns, layouts)
        if prompt + max_new_tokens <= self.window:
            return
        frames = sum(layout.frame_count for layout in layouts)
        questions = sum(turn.role == "user" for turn in turns)
        shown = f"{frames} frames, shown with each of {questions} questions," if questions > 1 else f"{frames} frames"
        visual = self.visual_tokens(turns, layouts)
        raise UserError(
            f"{shown} make {visual} visual tokens; with {prompt - visual} text tokens and {max_new_tokens} new tokens "
            f"that is {prompt + max_new_tokens}, more than the language model's window of {self.window} tokens"
            f"{f' ({self.rope})' if self.rope else ''}; {self._remedy(turns, layouts, max_new_tokens)}"
        )

    def visual_tokens(self, turns: Sequence[Turn], layouts: Sequence[MediumLayout]) -> int:
        """Visual tokens of an open conversation, counted in its ids."""
        return int((self.encode(turns, layouts).input_ids == self.processor.visual_token_id).sum())

    def encode(self, turns: Sequence[Turn], layouts: Sequence[MediumLayout]) -> EncodedSample:
        """Ids, spans and prompts of an open conversation: the ids of training up to the answer.

        ``pixel_values`` is an empty ``(F, 0)``: the frames are counted, their features come from elsewhere.
        """
        media = [LoadedMedium(layout, torch.empty(layout.frame_count, 0)) for layout in layouts]
        unbounded = replace(self.options, max_tokens=2**62)
        return encode_prompt(turns, media, self.processor, self.template, unbounded)

    def _remedy(self, turns: Sequence[Turn], layouts: Sequence[MediumLayout], max_new_tokens: int) -> str:
        def fits(cap: int) -> bool:
            capped = [replace(layout, lines_after_frame=_folded(layout, cap)) for layout in layouts]
            return self.prompt_tokens(turns, capped) + max_new_tokens <= self.window

        longest = max((layout.frame_count for layout in layouts if layout.type == "video"), default=0)
        most = largest(fits, longest)
        if most:
            return f"show at most {most} frames{' of each video' if len(layouts) > 1 else ''} (--frames {most})"
        return "lower the new tokens (--max-new-tokens) or ask in fewer words"


def _folded(layout: MediumLayout, cap: int) -> tuple[tuple[str, ...], ...]:
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


def _check_filled(question: str) -> None:
    if not question.strip():
        raise UserError('the question is empty; write one, e.g. "What happens in the video?"')


def _rope_words(parameters: dict[str, object] | None) -> str:
    kind = (parameters or {}).get("rope_type", "default")
    if parameters is None or kind == "default":
        return ""
    return f"rope {kind} x{parameters.get('factor', '?')}"

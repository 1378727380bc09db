"""A conversation and its media to token ids, labels and visual spans. Training and inference share this code.

``S`` tokens of the row, ``F`` distinct frames, ``V`` showings (one each time a medium stands in a turn), ``R`` prompts
(human turns that show something).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from longvid_train.data.manifest import MediaType, Turn
from longvid_train.data.placement import MediaPerTurn, PlacedTurn, PlaceholderPosition, place_media
from longvid_train.data.processing import MultimodalProcessor
from longvid_train.data.templates import ChatTemplate, EndPiece, Piece, ShowingPiece, conversation_pieces, piece_ids
from longvid_train.errors import UserError
from longvid_train.types import ALL_PATCHES, IGNORE_INDEX


@dataclass(frozen=True, kw_only=True)
class ConversationOptions:
    """How conversations become token sequences.

    Attributes:
        media_per_turn: ``"every_turn"`` shows all media seen so far again in each later user turn without a
            placeholder, so that every question gets context tokens of its own (the frames are stored once);
            ``"as_written"`` does not.
        placeholder_position: ``"first"`` or ``"random"`` move the media of a turn to its start, or to its start or end
            at random (drawn from seed, epoch and sample id); ``"as_written"`` leaves them.
        image_content_grid: content tokens of an image: ``ALL_PATCHES`` (0) or ``n`` for ``n x n``.
        video_content_grid: content tokens of a video's frame, the same way.
        max_tokens: longest allowed sequence; a longer one raises `SampleTooLongError`, none is ever cut.
    """

    media_per_turn: MediaPerTurn = "every_turn"
    placeholder_position: PlaceholderPosition = "as_written"
    image_content_grid: int = ALL_PATCHES
    video_content_grid: int = 1
    max_tokens: int = 2048


class SampleTooLongError(UserError):
    """A sample has more tokens than the options allow."""


@dataclass(frozen=True)
class MediumLayout:
    """What is known of a medium before its pixels: its type and the subtitle lines behind each of its frames."""

    type: MediaType
    lines_after_frame: tuple[tuple[str, ...], ...]

    @classmethod
    def without_subtitles(cls, kind: MediaType, frame_count: int) -> "MediumLayout":
        """A medium of ``frame_count`` frames and no subtitles."""
        return cls(kind, ((),) * frame_count)

    @property
    def frame_count(self) -> int:
        """Frames of the medium; 1 for an image."""
        return len(self.lines_after_frame)


@dataclass(frozen=True, eq=False)
class LoadedMedium:
    """A medium and its preprocessed frames, ``(N, 3, h, w)`` float32."""

    layout: MediumLayout
    pixel_values: torch.Tensor


@dataclass(frozen=True, eq=False)
class EncodedSample:
    """One row, ready to collate.

    Attributes:
        input_ids: ``(S,)`` int64; every visual token stands as one ``visual_token_id``.
        labels: ``(S,)`` int64, ``IGNORE_INDEX`` where nothing is supervised.
        pixel_values: ``(F, 3, h, w)`` float32, every distinct frame once; None for a text-only row.
        spans: ``(V, 3)`` int64 rows ``[first_frame, frame_count, prompt_row]`` in reading order.
        content_grids: ``(V,)`` int64.
        prompts: ``R`` texts for the text decoder.
        sample_id: the row's id.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    pixel_values: torch.Tensor | None
    spans: torch.Tensor
    content_grids: torch.Tensor
    prompts: tuple[str, ...]
    sample_id: str


def encode_conversation(
    turns: Sequence[Turn],
    media: Sequence[LoadedMedium],
    processor: MultimodalProcessor,
    template: ChatTemplate,
    options: ConversationOptions,
    *,
    sample_id: str,
    seed: int = 0,
    epoch: int = 0,
) -> EncodedSample:
    """Encode a conversation whose last turn is the assistant's, with labels on its answers.

    Raises:
        SampleTooLongError: the sequence is longer than ``options.max_tokens``.
        UserError: the tokenizer has no end token or merges across pieces.
    """
    placed = _place(turns, options, f"{seed}:{epoch}:{sample_id}")
    layouts = [medium.layout for medium in media]
    ids, labels = _token_ids(conversation_pieces(placed, template), layouts, processor, options)
    _check_length(len(ids), options, sample_id)
    spans, grids, prompts = _visual_spans(placed, layouts, options)
    return EncodedSample(
        input_ids=torch.tensor(ids, dtype=torch.int64),
        labels=torch.tensor(labels, dtype=torch.int64),
        pixel_values=torch.cat([medium.pixel_values for medium in media]) if media else None,
        spans=torch.tensor(spans, dtype=torch.int64).reshape(-1, 3),
        content_grids=torch.tensor(grids, dtype=torch.int64),
        prompts=tuple(prompts),
        sample_id=sample_id,
    )


def encode_prompt(
    turns: Sequence[Turn],
    media: Sequence[LoadedMedium],
    processor: MultimodalProcessor,
    template: ChatTemplate,
    options: ConversationOptions,
    *,
    sample_id: str = "prompt",
    seed: int = 0,
    epoch: int = 0,
) -> EncodedSample:
    """Encode a conversation up to the answer to generate: the ids of `encode_conversation` up to that answer.

    Args:
        turns: the conversation so far; a last assistant turn is left out, so that a training row can be asked.

    Others and errors: as `encode_conversation`.
    """
    open_turns = turns[:-1] if turns and turns[-1].role == "assistant" else turns
    return encode_conversation(
        open_turns, media, processor, template, options, sample_id=sample_id, seed=seed, epoch=epoch
    )


def sequence_length(
    turns: Sequence[Turn],
    layouts: Sequence[MediumLayout],
    processor: MultimodalProcessor,
    template: ChatTemplate,
    options: ConversationOptions,
) -> int:
    """Exact tokens of the encoded conversation, from frame counts and subtitle lines alone (nothing is decoded).

    The length does not depend on which frame a subtitle line follows, nor (as written or first) on the epoch. With
    ``placeholder_position="random"`` it is the length with the media first; at the end it can differ by the newline's
    tokens.
    """
    position: PlaceholderPosition = (
        "first" if options.placeholder_position == "random" else options.placeholder_position
    )
    placed = place_media(turns, media_per_turn=options.media_per_turn, position=position, seed="")
    return len(_token_ids(conversation_pieces(placed, template), layouts, processor, options)[0])


def _place(turns: Sequence[Turn], options: ConversationOptions, seed: str) -> list[PlacedTurn]:
    return place_media(turns, media_per_turn=options.media_per_turn, position=options.placeholder_position, seed=seed)


def _token_ids(
    pieces: Sequence[Piece],
    layouts: Sequence[MediumLayout],
    processor: MultimodalProcessor,
    options: ConversationOptions,
) -> tuple[list[int], list[int]]:
    """Ids and labels of all pieces, a beginning-of-sequence token in front if the tokenizer has one."""
    tokenizer = processor.tokenizer
    ids: list[int] = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    labels = [IGNORE_INDEX] * len(ids)
    for piece in pieces:
        if isinstance(piece, ShowingPiece):
            new = _showing_ids(layouts[piece.medium], processor, options)
            supervised = False
        elif isinstance(piece, EndPiece):
            new, supervised = [_end_token_id(tokenizer.eos_token_id)], True
        else:
            new, supervised = piece_ids(piece.text, tokenizer, continues=piece.continues), piece.supervised
        ids.extend(new)
        labels.extend(new if supervised else [IGNORE_INDEX] * len(new))
    return ids, labels


def _end_token_id(eos_token_id: int | None) -> int:
    if eos_token_id is None:
        raise UserError(
            "the tokenizer has no end-of-sequence token, which the template puts behind answers; set eos_token"
        )
    return eos_token_id


def _showing_ids(layout: MediumLayout, processor: MultimodalProcessor, options: ConversationOptions) -> list[int]:
    """Each frame's visual tokens, then the subtitle lines behind it, each line a continuing piece."""
    frame_ids = [processor.visual_token_id] * processor.tokens_per_frame(_content_grid(layout.type, options))
    ids: list[int] = []
    for lines in layout.lines_after_frame:
        ids.extend(frame_ids)
        for line in lines:
            ids.extend(piece_ids(f" {line}", processor.tokenizer, continues=True))
    return ids


def _visual_spans(
    placed: Sequence[PlacedTurn], layouts: Sequence[MediumLayout], options: ConversationOptions
) -> tuple[list[list[int]], list[int], list[str]]:
    """Spans, content grids and prompts of all showings in reading order."""
    first_frames = [sum(layout.frame_count for layout in layouts[:number]) for number in range(len(layouts))]
    spans: list[list[int]] = []
    grids: list[int] = []
    prompts: list[str] = []
    for turn in placed:
        if not turn.media:
            continue
        for medium in turn.media:
            spans.append([first_frames[medium], layouts[medium].frame_count, len(prompts)])
            grids.append(_content_grid(layouts[medium].type, options))
        prompts.append(turn.prompt)
    return spans, grids, prompts


def _content_grid(kind: Literal["image", "video"], options: ConversationOptions) -> int:
    return options.image_content_grid if kind == "image" else options.video_content_grid


def _check_length(length: int, options: ConversationOptions, sample_id: str) -> None:
    if length > options.max_tokens:
        raise SampleTooLongError(
            f"sample '{sample_id}' has {length} tokens and max_tokens is {options.max_tokens}; sample fewer frames, "
            "raise max_tokens, or set too_long: skip"
        )

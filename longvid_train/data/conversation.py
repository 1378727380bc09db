"""A conversation and its media to token ids, labels and visual spans. Training and inference share this code.

``S`` tokens of the row, ``F`` distinct frames, ``V`` showings (one each time a medium stands in a turn), ``R`` prompts
(human turns that show something).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from longvid_train.data.manifest import MediaType, Turn
from longvid_train.data.placement import (
    MediaPerTurn,
    PlacedTurn,
    PlaceholderPosition,
    place_media,
    possible_placements,
)
from longvid_train.data.processing import MultimodalProcessor
from longvid_train.data.templates import (
    EndPiece,
    IdsPiece,
    Piece,
    ShowingPiece,
    Template,
    TextPiece,
    piece_ids,
)
from longvid_train.errors import UserError
from longvid_train.types import ALL_PATCHES, IGNORE_INDEX, Shortening


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
        max_tokens: longest allowed sequence; a longer one raises `SampleTooLongError` (what is done before is
            ``TokenBudget``'s).
    """

    media_per_turn: MediaPerTurn = "every_turn"
    placeholder_position: PlaceholderPosition = "as_written"
    image_content_grid: int = ALL_PATCHES
    video_content_grid: int = 1
    max_tokens: int = 2048


class SampleTooLongError(UserError):
    """A sample has more tokens than the options allow."""


@dataclass(frozen=True)
class RowTokens:
    """Tokens of a row: of its text (subtitles and special tokens included) and of its frames."""

    text: int
    visual: int

    @property
    def total(self) -> int:
        """Length of the sequence."""
        return self.text + self.visual


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
    """A medium and its frames: preprocessed, or as the tower's features when a cache has them.

    Attributes:
        layout: what was known before.
        pixel_values: ``(N, 3, h, w)`` float32; None when ``features`` are given.
        features: ``(N, 1 + P, C)`` tower output in the cache's type.
    """

    layout: MediumLayout
    pixel_values: torch.Tensor | None = None
    features: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class EncodedSample:
    """One row, ready to collate.

    Attributes:
        input_ids: ``(S,)`` int64; every visual token stands as one ``visual_token_id``.
        labels: ``(S,)`` int64, ``IGNORE_INDEX`` where nothing is supervised.
        pixel_values: ``(F, 3, h, w)`` float32, every distinct frame once; None for a text-only row and with features.
        spans: ``(V, 3)`` int64 rows ``[first_frame, frame_count, prompt_row]`` in reading order.
        content_grids: ``(V,)`` int64.
        prompts: ``R`` texts for the text decoder.
        sample_id: the row's id.
        visual_features: ``(F, 1 + P, C)`` tower output instead of ``pixel_values``; None without a feature cache.
        shortening: what the token budget took from the row; None when nothing.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    pixel_values: torch.Tensor | None
    spans: torch.Tensor
    content_grids: torch.Tensor
    prompts: tuple[str, ...]
    sample_id: str
    visual_features: torch.Tensor | None = None
    shortening: Shortening | None = None


def encode_conversation(
    turns: Sequence[Turn],
    media: Sequence[LoadedMedium],
    processor: MultimodalProcessor,
    template: Template,
    options: ConversationOptions,
    *,
    sample_id: str,
    seed: int = 0,
    epoch: int = 0,
    cut_answer: bool = False,
) -> EncodedSample:
    """Encode a conversation whose last turn is the assistant's, with labels on its answers.

    Args:
        turns: the conversation as written.
        media: what its placeholders stand for.
        processor: the model's.
        template: how turns become text.
        options: how conversations become tokens.
        sample_id: the row's id.
        seed: decides random placeholder positions.
        epoch: likewise.
        cut_answer: end at ``options.max_tokens`` inside the last answer. Only answers are ever cut.

    Raises:
        SampleTooLongError: the sequence is longer than ``options.max_tokens``.
        UserError: the tokenizer has no end token or merges across pieces.
    """
    placed = _place(turns, options, f"{seed}:{epoch}:{sample_id}")
    layouts = [medium.layout for medium in media]
    ids, labels = _token_ids(placed, template, layouts, processor, options)
    if cut_answer and _last_answer_start(labels) < options.max_tokens:
        ids, labels = ids[: options.max_tokens], labels[: options.max_tokens]
    _check_length(len(ids), options, sample_id)
    spans, grids, prompts = _visual_spans(placed, layouts, options)
    return EncodedSample(
        input_ids=torch.tensor(ids, dtype=torch.int64),
        labels=torch.tensor(labels, dtype=torch.int64),
        pixel_values=_all_frames([medium.pixel_values for medium in media]),
        spans=torch.tensor(spans, dtype=torch.int64).reshape(-1, 3),
        content_grids=torch.tensor(grids, dtype=torch.int64),
        prompts=tuple(prompts),
        sample_id=sample_id,
        visual_features=_all_frames([medium.features for medium in media]),
    )


def encode_prompt(
    turns: Sequence[Turn],
    media: Sequence[LoadedMedium],
    processor: MultimodalProcessor,
    template: Template,
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


def token_counts(
    turns: Sequence[Turn],
    layouts: Sequence[MediumLayout],
    processor: MultimodalProcessor,
    template: Template,
    options: ConversationOptions,
) -> RowTokens:
    """Exact tokens of the encoded conversation, from frame counts and subtitle lines alone (nothing is decoded).

    The counts do not depend on which frame a subtitle line follows. With ``placeholder_position="random"`` an epoch's
    draw decides where newlines stand, and ``text`` is the most that any draw gives.
    """
    counts = [
        _counted(placed, template, layouts, processor, options)
        for placed in possible_placements(
            turns, media_per_turn=options.media_per_turn, position=options.placeholder_position
        )
    ]
    first = counts[0]
    return RowTokens(first.text + sum(max(0, other.text - first.text) for other in counts[1:]), first.visual)


def sequence_length(
    turns: Sequence[Turn],
    layouts: Sequence[MediumLayout],
    processor: MultimodalProcessor,
    template: Template,
    options: ConversationOptions,
) -> int:
    """Total of `token_counts`."""
    return token_counts(turns, layouts, processor, template, options).total


def answer_regions(
    turns: Sequence[Turn],
    layouts: Sequence[MediumLayout],
    processor: MultimodalProcessor,
    template: Template,
    options: ConversationOptions,
) -> list[tuple[int, int]]:
    """Start and end (exclusive) of each answer's supervised tokens, with no medium moved to a turn's end."""
    placed = next(
        possible_placements(turns, media_per_turn=options.media_per_turn, position=options.placeholder_position)
    )
    regions: list[tuple[int, int]] = []
    position = len(template.opening_ids(processor.tokenizer))
    for piece, ids in _tokenised(template.pieces(placed), layouts, processor, options):
        if isinstance(piece, TextPiece) and piece.supervised:
            regions.append((position, position + len(ids)))
        elif isinstance(piece, EndPiece):
            regions[-1] = (regions[-1][0], position + len(ids))
        position += len(ids)
    return regions


def shown_media(turns: Sequence[Turn], options: ConversationOptions) -> list[int]:
    """Numbers of the media in the order of their showings (the same for every draw of a random position)."""
    placed = next(
        possible_placements(turns, media_per_turn=options.media_per_turn, position=options.placeholder_position)
    )
    return [medium for turn in placed for medium in turn.media]


def _counted(
    placed: Sequence[PlacedTurn],
    template: Template,
    layouts: Sequence[MediumLayout],
    processor: MultimodalProcessor,
    options: ConversationOptions,
) -> RowTokens:
    total, visual = len(template.opening_ids(processor.tokenizer)), 0
    for piece, ids in _tokenised(template.pieces(placed), layouts, processor, options):
        total += len(ids)
        if isinstance(piece, ShowingPiece):
            visual += sum(_frame_tokens(layouts[piece.medium], processor, options))
    return RowTokens(total - visual, visual)


def _all_frames(frames: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """Frames of all media in one tensor; None without any."""
    given = [part for part in frames if part is not None]
    return torch.cat(given) if given else None


def _place(turns: Sequence[Turn], options: ConversationOptions, seed: str) -> list[PlacedTurn]:
    return place_media(turns, media_per_turn=options.media_per_turn, position=options.placeholder_position, seed=seed)


def _token_ids(
    placed: Sequence[PlacedTurn],
    template: Template,
    layouts: Sequence[MediumLayout],
    processor: MultimodalProcessor,
    options: ConversationOptions,
) -> tuple[list[int], list[int]]:
    """Ids and labels of all pieces."""
    ids = template.opening_ids(processor.tokenizer)
    labels = [IGNORE_INDEX] * len(ids)
    for piece, new in _tokenised(template.pieces(placed), layouts, processor, options):
        supervised = isinstance(piece, EndPiece) or (isinstance(piece, TextPiece) and piece.supervised)
        ids.extend(new)
        labels.extend(new if supervised else [IGNORE_INDEX] * len(new))
    return ids, labels


def _last_answer_start(labels: Sequence[int]) -> int:
    """Where the supervised tokens at the end of a row begin: nothing before it is ever cut."""
    return max((place + 1 for place, label in enumerate(labels) if label == IGNORE_INDEX), default=0)


def _tokenised(
    pieces: Sequence[Piece],
    layouts: Sequence[MediumLayout],
    processor: MultimodalProcessor,
    options: ConversationOptions,
) -> Iterator[tuple[Piece, list[int]]]:
    for piece in pieces:
        if isinstance(piece, ShowingPiece):
            yield piece, _showing_ids(layouts[piece.medium], processor, options)
        elif isinstance(piece, EndPiece):
            yield piece, [_end_token_id(processor.tokenizer.eos_token_id)]
        elif isinstance(piece, IdsPiece):
            yield piece, list(piece.ids)
        else:
            ids = piece_ids(piece.text, processor.tokenizer, continues=piece.continues, anchor=piece.anchor)
            yield piece, ids


def _end_token_id(eos_token_id: int | None) -> int:
    if eos_token_id is None:
        raise UserError(
            "the tokenizer has no end-of-sequence token, which the template puts behind answers; set eos_token"
        )
    return eos_token_id


def _showing_ids(layout: MediumLayout, processor: MultimodalProcessor, options: ConversationOptions) -> list[int]:
    """Each frame's visual tokens, then the subtitle lines behind it, each line a continuing piece."""
    ids: list[int] = []
    for count, lines in zip(_frame_tokens(layout, processor, options), layout.lines_after_frame, strict=True):
        ids.extend([processor.visual_token_id] * count)
        for line in lines:
            ids.extend(piece_ids(f" {line}", processor.tokenizer, continues=True))
    return ids


def _frame_tokens(
    layout: MediumLayout, processor: MultimodalProcessor, options: ConversationOptions
) -> tuple[int, ...]:
    return processor.frame_tokens(content_grid(layout.type, options), layout.frame_count)


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
            grids.append(content_grid(layouts[medium].type, options))
        prompts.append(turn.prompt)
    return spans, grids, prompts


def content_grid(kind: MediaType, options: ConversationOptions) -> int:
    """Content tokens of a frame of an image or video: ``ALL_PATCHES`` or ``n`` for ``n x n``."""
    return options.image_content_grid if kind == "image" else options.video_content_grid


def _check_length(length: int, options: ConversationOptions, sample_id: str) -> None:
    if length > options.max_tokens:
        raise SampleTooLongError(
            f"sample '{sample_id}' has {length} tokens and max_tokens is {options.max_tokens}; sample fewer frames, "
            "raise max_tokens, or say in budget.shorten what may be left out"
        )

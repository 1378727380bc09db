"""A row's token budget, kept before anything is decoded.

What a row costs is known from its text and its files' frame counts. A row over ``max_tokens`` is shortened by the steps
the config lists, in that order, until it fits: fewer frames of its videos, coarser content grids, less text. Frames are
left out whole and text is cut inside an answer only, so a showing's visual tokens are never cut. What still does not
fit raises `SampleTooLongError`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from longvid_train.data.conversation import (
    ConversationOptions,
    MediumLayout,
    RowTokens,
    SampleTooLongError,
    answer_regions,
    content_grid,
    shown_media,
    token_counts,
)
from longvid_train.data.manifest import MediaType, Turn
from longvid_train.data.processing import MultimodalProcessor
from longvid_train.data.templates import Template
from longvid_train.errors import UserError
from longvid_train.types import ALL_PATCHES, Shortening

ShorteningStep = Literal["fewer_frames", "coarser_pooling", "truncate_text"]


@dataclass(frozen=True, kw_only=True)
class TokenBudget:
    """How a row longer than ``conversation.max_tokens`` is made to fit.

    Attributes:
        shorten: steps tried in this order until the row fits, each as far as needed: ``fewer_frames`` thins every video
            of the row evenly to one common largest number of frames; ``coarser_pooling`` lowers the content grids of
            images and videos; ``truncate_text`` leaves out the last turns and cuts the last answer that is left (rows
            with answers only). Empty: a row that is too long is not shortened.
        min_frames: frames of a video that ``fewer_frames`` always leaves.
    """

    shorten: tuple[ShorteningStep, ...] = ()
    min_frames: int = 1

    def __post_init__(self) -> None:
        """Refuse steps that are listed twice and budgets without frames."""
        if len(set(self.shorten)) < len(self.shorten):
            raise UserError(f"budget.shorten is {list(self.shorten)}; list each step once")
        if self.min_frames < 1:
            raise UserError(f"budget.min_frames is {self.min_frames}; it must be at least 1")


@dataclass(frozen=True)
class RowPlan:
    """How a row will be read so that it fits.

    Attributes:
        tokens: exact tokens of the encoded row (an upper bound for the text with random placeholder positions).
        turns: turns kept, from the first.
        media: media kept, from the first.
        max_frames: most frames to take of each video; None takes all that are sampled.
        options: the conversation options with the row's content grids.
        cut_answer: whether the last answer ends at ``max_tokens``.
        frames: distinct frames of the row, images counted as one.
        showings: content grid and frames of each showing, in reading order.
        shortening: what was left out; None when nothing was.
    """

    tokens: RowTokens
    turns: int
    media: int
    max_frames: int | None
    options: ConversationOptions
    cut_answer: bool
    frames: int
    showings: tuple[tuple[int, int], ...]
    shortening: Shortening | None


class RowPlanner:
    """Plans rows with one set of options; pure, nothing is read."""

    def __init__(
        self,
        processor: MultimodalProcessor,
        template: Template,
        options: ConversationOptions,
        budget: TokenBudget,
        *,
        for_generation: bool = False,
    ) -> None:
        """Plan for ``options.max_tokens``; ``for_generation`` leaves the last answer out and never cuts text."""
        self._processor = processor
        self._template = template
        self._options = options
        self._budget = budget
        self._for_generation = for_generation
        self._steps: dict[ShorteningStep, Callable[[_Draft], _Draft]] = {
            "fewer_frames": self._fewer_frames,
            "coarser_pooling": self._coarser_pooling,
            "truncate_text": self._truncated,
        }

    def plan(self, turns: Sequence[Turn], layouts: Sequence[MediumLayout]) -> RowPlan:
        """Plan one row.

        Args:
            turns: the conversation as written.
            layouts: frames and subtitles of its media as sampled.

        Raises:
            SampleTooLongError: no listed step makes the row fit; the message has its tokens before and after.
        """
        if self._for_generation and turns and turns[-1].role == "assistant":
            turns = turns[:-1]
        whole = draft = self._draft(turns, layouts, self._options, max_frames=None, cut_answer=False)
        for step in self._budget.shorten:
            if draft.tokens.total <= self._options.max_tokens:
                break
            draft = self._steps[step](draft)
        if draft.tokens.total > self._options.max_tokens:
            raise SampleTooLongError(self._complaint(whole, draft))
        return RowPlan(
            tokens=draft.tokens,
            turns=len(draft.turns),
            media=len(draft.layouts),
            max_frames=draft.max_frames,
            options=draft.options,
            cut_answer=draft.cut_answer,
            frames=draft.frames,
            showings=draft.showings,
            shortening=_shortening(whole, draft),
        )

    def _draft(
        self,
        turns: Sequence[Turn],
        layouts: Sequence[MediumLayout],
        options: ConversationOptions,
        *,
        max_frames: int | None,
        cut_answer: bool,
    ) -> "_Draft":
        """Count a row as it would be encoded; an answer that is cut ends at the limit."""
        tokens = token_counts(turns, layouts, self._processor, self._template, options)
        if cut_answer:
            tokens = RowTokens(min(tokens.text, options.max_tokens - tokens.visual), tokens.visual)
        return _Draft(tuple(turns), tuple(layouts), options, max_frames, cut_answer, tokens)

    def _fewer_frames(self, draft: "_Draft") -> "_Draft":
        """Thin all videos to the largest common number of frames that fits, or to ``min_frames``."""
        shown = [draft.layouts[medium] for medium in shown_media(draft.turns, draft.options)]
        room = draft.options.max_tokens - draft.tokens.text

        def visual(frames: int) -> int:
            return sum(
                self._visual_tokens(draft, layout.type, min(layout.frame_count, frames))
                for layout in shown
                if layout.frame_count
            )

        longest = max((layout.frame_count for layout in draft.layouts if layout.type == "video"), default=0)
        least = min(self._budget.min_frames, longest)
        fitting = _largest(least, longest, lambda frames: visual(frames) <= room)
        if fitting >= longest:
            return draft
        layouts = [_thinned_layout(layout, fitting) for layout in draft.layouts]
        return self._draft(draft.turns, layouts, draft.options, max_frames=max(fitting, 1), cut_answer=draft.cut_answer)

    def _coarser_pooling(self, draft: "_Draft") -> "_Draft":
        """Lower both content grids to the finest common one that fits, or to 1."""
        side = self._processor.visual_grid
        for grid in (grid for grid in range(side - 1, 0, -1) if side % grid == 0):
            options = replace(
                draft.options,
                image_content_grid=_at_most(draft.options.image_content_grid, grid),
                video_content_grid=_at_most(draft.options.video_content_grid, grid),
            )
            coarser = self._draft(
                draft.turns, draft.layouts, options, max_frames=draft.max_frames, cut_answer=draft.cut_answer
            )
            if coarser.tokens.total <= options.max_tokens:
                return coarser
        return draft if side == 1 else coarser

    def _truncated(self, draft: "_Draft") -> "_Draft":
        """Leave out the turns behind the last answer that starts within the limit, and cut that answer there."""
        if self._for_generation or draft.cut_answer:
            return draft
        regions = answer_regions(draft.turns, draft.layouts, self._processor, self._template, draft.options)
        for kept in range(len(regions), 0, -1):
            turns = draft.turns[: 2 * kept]
            media = len(set(shown_media(turns, draft.options)))
            shorter = self._draft(
                turns, draft.layouts[:media], draft.options, max_frames=draft.max_frames, cut_answer=False
            )
            start, end = regions[kept - 1]
            # With random positions the text may be longer than laid out here: the answer then starts later too.
            slack = shorter.tokens.total - end
            if start + slack < draft.options.max_tokens:
                too_long = shorter.tokens.total > draft.options.max_tokens
                return self._draft(
                    turns, shorter.layouts, draft.options, max_frames=draft.max_frames, cut_answer=too_long
                )
        return draft

    def _visual_tokens(self, draft: "_Draft", kind: MediaType, frames: int) -> int:
        return sum(self._processor.frame_tokens(content_grid(kind, draft.options), frames))

    def _complaint(self, whole: "_Draft", draft: "_Draft") -> str:
        limit = self._options.max_tokens
        tokens = f"the row has {whole.tokens.total} tokens ({whole.tokens.text} text, {whole.tokens.visual} visual)"
        if not self._budget.shorten:
            return (
                f"{tokens} and max_tokens is {limit}; sample fewer frames, raise max_tokens, say in budget.shorten "
                "what may be left out, or set bad_samples.too_long to skip"
            )
        return (
            f"{tokens}, still {draft.tokens.total} after {' and '.join(self._budget.shorten)}, and max_tokens is "
            f"{limit}; raise max_tokens, allow more in budget, or set bad_samples.too_long to skip"
        )


@dataclass(frozen=True)
class _Draft:
    turns: tuple[Turn, ...]
    layouts: tuple[MediumLayout, ...]
    options: ConversationOptions
    max_frames: int | None
    cut_answer: bool
    tokens: RowTokens

    @property
    def frames(self) -> int:
        return sum(layout.frame_count for layout in self.layouts)

    @property
    def showings(self) -> tuple[tuple[int, int], ...]:
        shown = [self.layouts[medium] for medium in shown_media(self.turns, self.options)]
        return tuple((content_grid(layout.type, self.options), layout.frame_count) for layout in shown)


def _shortening(whole: _Draft, draft: _Draft) -> Shortening | None:
    if draft is whole:
        return None
    return Shortening(
        frames=whole.frames - draft.frames,
        visual_tokens=whole.tokens.visual - draft.tokens.visual,
        text_tokens=whole.tokens.text - draft.tokens.text,
    )


def _thinned_layout(layout: MediumLayout, frames: int) -> MediumLayout:
    """The layout with at most ``frames`` frames, every subtitle line behind the last (lengths do not care)."""
    if layout.type == "image" or layout.frame_count <= frames:
        return layout
    lines = tuple(line for lines in layout.lines_after_frame for line in lines)
    return MediumLayout(layout.type, ((),) * (frames - 1) + (lines,))


def _at_most(grid: int, limit: int) -> int:
    return limit if grid == ALL_PATCHES else min(grid, limit)


def _largest(least: int, most: int, fits: Callable[[int], bool]) -> int:
    """Largest number in ``[least, most]`` that fits, by bisection; ``least`` when none does."""
    low, high = least, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low

"""What happened while one answer was made under a zoom: plain values, to be written as JSON and drawn.

Attention in a trace is the mean over heads and over the band's layers of one query row, copies of a token counted
together; over all tokens of the sequence, text included, a row sums to 1.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longvid_train.files import write_text

CLASS_TOKEN = -1
"""Row and column of a token that is no cell of its frame."""

DIGITS = 8
"""Decimals in JSON."""


@dataclass(frozen=True, kw_only=True)
class TracedFrame:
    """One frame of the overview.

    Attributes:
        frame: its number among the frames taken of the video, from 0.
        time_s: its time in the video.
        score: attention a token, which frames are chosen by (paper Eq. 7); ``None`` when nothing was scored.
        chosen: whether it was shown again in full.
    """

    frame: int
    time_s: float
    score: float | None
    chosen: bool


@dataclass(frozen=True, kw_only=True)
class TracedPicture:
    """One picture that the language model saw: a frame at one resolution.

    Attributes:
        pathway: ``"overview"`` or ``"zoom"``.
        frame: as in `TracedFrame`.
        time_s: as in `TracedFrame`.
        rows: cells from top to bottom.
        columns: cells from left to right.
        class_tokens: tokens in front of the cells.
    """

    pathway: str
    frame: int
    time_s: float
    rows: int
    columns: int
    class_tokens: int


@dataclass(frozen=True, kw_only=True)
class TokenPlace:
    """One visual token: number of its picture in `ZoomTrace.pictures`, frame, row and column (or `CLASS_TOKEN`)."""

    picture: int
    frame: int
    row: int
    column: int


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """One sentence of the answer and where the model looked when it was complete.

    Attributes:
        text: stripped; the last one may be unfinished.
        new_tokens: tokens generated until its end was seen.
        frame_mass: attention of each picture, in the order of `ZoomTrace.pictures`.
        cell_mass: attention of each picture's cells, row by row; class tokens are in ``frame_mass`` only.
    """

    text: str
    new_tokens: int
    frame_mass: tuple[float, ...]
    cell_mass: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Adjustment:
    """One adaptive token adjustment.

    Attributes:
        sentences: complete sentences at that time.
        new_tokens: tokens generated at that time.
        copied: tokens that got one more copy, most attended first.
        dropped: tokens that lost a copy (their last one, mostly), least attended first.
        visual_tokens: visual tokens afterwards, copies counted.
    """

    sentences: int
    new_tokens: int
    copied: tuple[TokenPlace, ...]
    dropped: tuple[TokenPlace, ...]
    visual_tokens: int


@dataclass(frozen=True, kw_only=True)
class ModuleSeconds:
    """Wall-clock seconds by module, as the paper's Table 8 splits them.

    Attributes:
        overview_encode_s: overview frames through the tower; 0 when an earlier question did it.
        prefill_s: text and overview through the language model.
        draft_s: the ``s`` tokens that are generated again.
        scoring_s: attention of the frames.
        zoom_encode_s: chosen frames through the tower.
        zoom_prefill_s: their tokens, and what stands behind them, through the language model.
        generate_s: the answer's tokens, without adjustments.
        adjustment_s: sentence ends, attention at them and adjustments.
    """

    overview_encode_s: float = 0.0
    prefill_s: float = 0.0
    draft_s: float = 0.0
    scoring_s: float = 0.0
    zoom_encode_s: float = 0.0
    zoom_prefill_s: float = 0.0
    generate_s: float = 0.0
    adjustment_s: float = 0.0

    @property
    def augmenter_s(self) -> float:
        """The video overview augmenter: everything between the overview's prefill and the answer."""
        return self.draft_s + self.scoring_s + self.zoom_encode_s + self.zoom_prefill_s

    @property
    def total_s(self) -> float:
        """All of it."""
        return float(sum(dataclasses.astuple(self)))


@dataclass(frozen=True, kw_only=True)
class ZoomTrace:
    """One answer.

    Attributes:
        question: as asked.
        answer: as given.
        video: path of the video; empty where the caller did not say.
        settings: the zoom's settings as plain values, defaults of the backbone filled in.
        layers: first and last layer of the band, counted from 0, both inclusive.
        frames_taken: frames taken of the video, from which the overview was thinned.
        overview: frames of the overview, in time order.
        pictures: what the language model saw, in its reading order: the overview, then the chosen frames.
        overview_tokens: visual tokens of the overview.
        zoom_tokens: visual tokens of the chosen frames.
        draft: text of the tokens that were generated before frames were chosen; empty without a zoom.
        draft_tokens: how many these were.
        sentences: of the answer; none where their attention was not asked for.
        adjustments: in order.
        seconds: by module.
        new_tokens: of the answer, the draft's not counted.
        notes: lines for the user, such as that the answer ended before frames were chosen.
    """

    question: str
    answer: str
    video: str
    settings: dict[str, Any]
    layers: tuple[int, int]
    frames_taken: int
    overview: tuple[TracedFrame, ...]
    pictures: tuple[TracedPicture, ...]
    overview_tokens: int
    zoom_tokens: int
    draft: str
    draft_tokens: int
    sentences: tuple[Sentence, ...]
    adjustments: tuple[Adjustment, ...]
    seconds: ModuleSeconds
    new_tokens: int
    notes: tuple[str, ...]

    @property
    def chosen(self) -> tuple[TracedFrame, ...]:
        """The frames shown again in full, in time order."""
        return tuple(frame for frame in self.overview if frame.chosen)


def trace_values(trace: ZoomTrace) -> dict[str, Any]:
    """The trace as JSON can hold it, numbers rounded to `DIGITS` decimals."""
    values: dict[str, Any] = _rounded(dataclasses.asdict(trace))
    return values


def write_trace(trace: ZoomTrace, path: Path) -> None:
    """Write a trace as JSON."""
    write_text(path, json.dumps(trace_values(trace), ensure_ascii=False) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value

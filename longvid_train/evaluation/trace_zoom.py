"""The page of an answer made under a zoom (ZoomVLM, Figures 3 and 4)."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from longvid_train.evaluation.formatting import clock, duration, number, percent
from longvid_train.evaluation.samples import thin_out
from longvid_train.evaluation.trace_parts import (
    MOST_PICTURES,
    Bar,
    Group,
    Mark,
    Picture,
    Share,
    Table,
    Tile,
    TracePage,
    View,
    relative,
)
from longvid_train.generate.zoom.trace import CLASS_TOKEN, Adjustment, Sentence, TokenPlace, ZoomTrace

OVERVIEW, ZOOM = "overview", "zoom"

_MODULES = (
    ("overview through the tower", "overview_encode_s"),
    ("prefill of text and overview", "prefill_s"),
    ("tokens generated again (s)", "draft_s"),
    ("scores of the frames", "scoring_s"),
    ("chosen frames through the tower", "zoom_encode_s"),
    ("prefill of the chosen frames", "zoom_prefill_s"),
    ("tokens of the answer", "generate_s"),
    ("token adjustment", "adjustment_s"),
)

_VIEWS_NOTE = (
    "A sentence's bars are the attention of its last token on each frame, both resolutions together; heat is the "
    "square root of the attention on a cell, relative to the sentence's highest. Adjustments made behind a sentence "
    "are marked: a frame around a cell is a copied token, a cross a dropped one."
)


def zoom_page(trace: ZoomTrace, frames: Sequence[NDArray[np.uint8]]) -> TracePage:
    """Everything a page shows of a trace.

    Args:
        trace: of an answer.
        frames: ``(h, w, 3)`` uint8 of each overview frame, in order, as the tower saw it.
    """
    assert len(frames) == len(trace.overview)
    place_of = {one.frame: place for place, one in enumerate(trace.overview)}
    return TracePage(
        title=trace.question,
        answer=trace.answer,
        facts=_facts(trace),
        tiles=_tiles(trace),
        views_title="The answer, sentence by sentence",
        views_note=_VIEWS_NOTE,
        views=(
            _scores_view(trace),
            *(_sentence_view(trace, place_of, number) for number in range(len(trace.sentences))),
        ),
        bars=tuple(Bar(time_s=one.time_s, chosen=one.chosen) for one in trace.overview),
        groups=_groups(trace, frames, place_of),
        shares=tuple(Share(name=name, seconds=getattr(trace.seconds, field)) for name, field in _MODULES),
        tables=_tables(trace),
        notes=trace.notes,
    )


def _facts(trace: ZoomTrace) -> str:
    first, last = trace.layers
    settings = ", ".join(f"{name} {value}" for name, value in trace.settings.items() if value is not None)
    return f"{trace.video or 'frames in memory'}; attention of layers {first} to {last}; {settings}"


def _tiles(trace: ZoomTrace) -> tuple[Tile, ...]:
    copied = sum(len(one.copied) for one in trace.adjustments)
    dropped = sum(len(one.dropped) for one in trace.adjustments)
    seconds = trace.seconds
    answer_s = seconds.generate_s + seconds.adjustment_s
    rate = f"{number(trace.new_tokens / answer_s)} tokens/s" if answer_s > 0 else "not timed"
    share = f"{percent(seconds.adjustment_s / seconds.total_s)} of the time" if seconds.total_s > 0 else "not timed"
    return (
        Tile(
            name="overview",
            number=f"{len(trace.overview)} frames",
            note=f"of {trace.frames_taken} taken; {number(trace.overview_tokens)} visual tokens",
        ),
        Tile(
            name="zoom",
            number=f"{len(trace.chosen)} frames",
            note=f"shown again in full; {number(trace.zoom_tokens)} visual tokens",
        ),
        Tile(
            name="answer",
            number=f"{number(trace.new_tokens)} tokens",
            note=f"{duration(seconds.total_s)} in all; {rate}",
        ),
        Tile(
            name="adjustment",
            number=f"{len(trace.adjustments)} times",
            note=f"{copied} tokens copied, {dropped} dropped; {share}",
        ),
    )


def _scores_view(trace: ZoomTrace) -> View:
    scored = any(one.score is not None for one in trace.overview)
    most = max((one.score or 0.0 for one in trace.overview), default=0.0)
    return View(
        label=trace.draft or "before the answer",
        detail=f"scores that chose the frames; drafted and generated again: {trace.draft_tokens}"
        if scored
        else "no frame was scored",
        bars=relative([one.score or 0.0 for one in trace.overview]),
        heat={},
        marks=(),
        scale=f"highest bar {most:.2e} of the attention, a token",
    )


def _sentence_view(trace: ZoomTrace, place_of: dict[int, int], index: int) -> View:
    sentence = trace.sentences[index]
    behind = [one for one in trace.adjustments if one.sentences == index + 1]
    mass = [0.0] * len(trace.overview)
    for picture, found in zip(trace.pictures, sentence.frame_mass, strict=True):
        mass[place_of[picture.frame]] += found
    cells = [np.array(one, dtype=np.float64) for one in sentence.cell_mass]
    most = max((float(one.max(initial=0.0)) for one in cells), default=0.0)
    return View(
        label=sentence.text,
        detail=_sentence_detail(sentence, behind),
        bars=relative(mass),
        heat={one: np.sqrt(cells[one] / most) for one in range(len(cells)) if most > 0 and cells[one].size},
        marks=tuple(mark for one in behind for mark in _marks(one)),
        scale=f"highest bar {percent(max(mass, default=0.0))} and hottest cell {percent(most)} of the attention",
    )


def _sentence_detail(sentence: Sentence, behind: Sequence[Adjustment]) -> str:
    parts = [f"{sentence.new_tokens} tokens until here"]
    parts += [f"then {len(one.copied)} copied, {len(one.dropped)} dropped" for one in behind]
    return "; ".join(parts)


def _marks(adjustment: Adjustment) -> Iterable[Mark]:
    for kind, places in (("copied", adjustment.copied), ("dropped", adjustment.dropped)):
        for place in places:
            if place.row != CLASS_TOKEN:
                yield Mark(picture=place.picture, row=place.row, column=place.column, kind=kind)


def _groups(trace: ZoomTrace, frames: Sequence[NDArray[np.uint8]], place_of: dict[int, int]) -> tuple[Group, ...]:
    chosen = {one.frame for one in trace.chosen}

    def pictures(pathway: str) -> tuple[Picture, ...]:
        found = [
            Picture(
                number=number,
                place=place_of[one.frame],
                time_s=one.time_s,
                image=frames[place_of[one.frame]],
                rows=one.rows,
                columns=one.columns,
                chosen=one.frame in chosen,
            )
            for number, one in enumerate(trace.pictures)
            if one.pathway == pathway
        ]
        return tuple(found[index] for index in thin_out(len(found), MOST_PICTURES))

    zoomed, overview = pictures(ZOOM), pictures(OVERVIEW)
    groups = [Group(title="Chosen frames", note=_cells_note(zoomed), pictures=zoomed, large=True)] if zoomed else []
    return (*groups, Group(title="Overview", note=_cells_note(overview, len(trace.overview)), pictures=overview))


def _cells_note(pictures: Sequence[Picture], frames: int | None = None) -> str:
    sizes = Counter((one.rows, one.columns) for one in pictures)
    words = ", ".join(f"{rows} x {columns} cells" for rows, columns in sizes)
    left_out = f"; {len(pictures)} of the {frames} frames, evenly chosen" if frames and frames > len(pictures) else ""
    return f"{words} a frame{left_out}"


def _tables(trace: ZoomTrace) -> tuple[Table, ...]:
    if not trace.adjustments:
        return ()
    rows = tuple(
        (
            f"after sentence {one.sentences}",
            f"{one.new_tokens}",
            _places(trace, one.copied),
            _places(trace, one.dropped),
            number(one.visual_tokens),
        )
        for one in trace.adjustments
    )
    return (
        Table(
            title="Token adjustments",
            note="Tokens are named by time and cell (row, column; from 0); a + stands behind chosen frames in full.",
            header=("", "token", "copied", "dropped", "visual tokens after"),
            rows=rows,
        ),
    )


def _places(trace: ZoomTrace, places: Sequence[TokenPlace]) -> str:
    words = []
    for place in places:
        picture = trace.pictures[place.picture]
        cell = "class token" if place.row == CLASS_TOKEN else f"({place.row}, {place.column})"
        words.append(f"{clock(picture.time_s)}{'+' if picture.pathway == ZOOM else ''} {cell}")
    return "; ".join(words) or "none"

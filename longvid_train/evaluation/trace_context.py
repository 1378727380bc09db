"""The page of LLaMA-VID's context attention for one question (LLaMA-VID, Figures 6 and 11)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from longvid_train.evaluation.trace_parts import Bar, Group, Mark, Picture, Tile, TracePage, View
from longvid_train.generate.context_trace import ContextTrace

_VIEWS_NOTE = (
    "Each query of the text decoder looks over the patches of every frame. Heat is its score before the softmax, from "
    "the lowest to the highest of the frame, as the paper draws it; the highest patches are framed. Bars are each "
    "frame's highest score, from the lowest to the highest of all frames."
)


def context_page(trace: ContextTrace, frames: Sequence[NDArray[np.uint8]]) -> TracePage:
    """Everything a page shows of a trace.

    Args:
        trace: of an answer.
        frames: ``(h, w, 3)`` uint8 of each of its frames, in order, as the tower saw it.
    """
    assert len(frames) == len(trace.frames)
    scores = np.array([one.scores for one in trace.frames])
    queries, top = scores.shape[1], len(trace.frames[0].top[0])
    left_out = f"; {len(frames)} of the {trace.shown}, evenly chosen" if trace.shown > len(frames) else ""
    pictures = tuple(
        Picture(
            number=place,
            place=place,
            time_s=None if trace.image else one.time_s,
            image=image,
            rows=trace.rows,
            columns=trace.columns,
        )
        for place, (one, image) in enumerate(zip(trace.frames, frames, strict=True))
    )
    return TracePage(
        title=trace.question,
        answer=trace.answer,
        facts=f"{trace.medium}; context attention of the question over {trace.rows} x {trace.columns} patches a frame",
        tiles=(
            Tile(name="frames", number=f"{trace.shown}", note="each with one context token for this question"),
            Tile(name="queries", number=f"{queries}", note="the first of the text decoder's"),
            Tile(name="marked", number=f"{top} patches", note="with the highest scores of a query in a frame"),
        ),
        views_title="The queries of the question",
        views_note=_VIEWS_NOTE,
        views=tuple(_query_view(trace, scores[:, query], query) for query in range(queries)),
        bars=tuple(Bar(time_s=one.time_s, chosen=False) for one in trace.frames),
        groups=(
            Group(
                title="Image" if trace.image else "Frames",
                note=f"{trace.rows} x {trace.columns} patches each{left_out}",
                pictures=pictures,
                large=len(pictures) <= 32,
            ),
        ),
        shares=(),
        tables=(),
        notes=(),
    )


def _query_view(trace: ContextTrace, scores: NDArray[np.float64], query: int) -> View:
    """``scores`` is ``(F, P)``."""
    highest = scores.max(axis=1)
    return View(
        label=f"query {query + 1}",
        detail="",
        bars=tuple(_stretched(highest).tolist()),
        heat={place: _stretched(row) for place, row in enumerate(scores)},
        marks=tuple(
            Mark(picture=place, row=patch // trace.columns, column=patch % trace.columns, kind="top")
            for place, one in enumerate(trace.frames)
            for patch in one.top[query]
        ),
        scale=f"scores from {scores.min():.2f} to {scores.max():.2f}",
    )


def _stretched(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """From 0 (the lowest) to 1 (the highest); equal values are 0."""
    span = values.max() - values.min()
    return (values - values.min()) / span if span > 0 else np.zeros_like(values)

"""A trace as one HTML file with its own script and pictures, and as JSON; nothing is fetched.

A policy in the page allows its own script, by hash, and no other; texts are escaped by the template engine. The size
is bounded: at most `MOST_PICTURES` pictures a group, the smaller the more there are, and `HEAT_CELLS` bytes of heat.
The JSON has everything.
"""

import base64
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from longvid_train.evaluation import formatting
from longvid_train.evaluation.templating import Filter, page_environment, read_template
from longvid_train.evaluation.trace_context import context_page
from longvid_train.evaluation.trace_parts import HEAT_CELLS, Bar, TracePage, View, view_values
from longvid_train.evaluation.trace_zoom import zoom_page
from longvid_train.files import write_text
from longvid_train.generate.context_trace import ContextTrace
from longvid_train.generate.zoom.trace import ZoomTrace, trace_values

TIMELINE_WIDTH, TIMELINE_HEIGHT = 1000, 64
"""Units of the timeline's drawing."""

_WIDEST_BAR = 24.0

_FILTERS: tuple[Filter, ...] = (formatting.clock, formatting.duration, formatting.percent)


def write_trace_page(
    trace: ZoomTrace | ContextTrace, frames: Sequence[NDArray[np.uint8]], folder: Path, *, name: str = "trace"
) -> Path:
    """Write ``NAME.json`` and ``NAME.html``, each whole or not at all.

    Args:
        trace: of one answer.
        frames: ``(h, w, 3)`` uint8 of each frame of the trace (of its overview), in order, as the tower saw it
            (`longvid_train.generate.seen.seen_frames`).
        folder: made where it is missing; files of these names are replaced.
        name: without suffix.

    Returns:
        The page.
    """
    values = trace_values(trace) if isinstance(trace, ZoomTrace) else dataclasses.asdict(trace)
    page = zoom_page(trace, frames) if isinstance(trace, ZoomTrace) else context_page(trace, frames)
    write_text(folder / f"{name}.json", json.dumps(values, ensure_ascii=False) + "\n")
    path = folder / f"{name}.html"
    write_text(path, render_trace_page(page))
    return path


def render_trace_page(page: TracePage) -> str:
    """Render a page; the same input gives the same text."""
    script = read_template("trace.js")
    drawn = {one.number for group in page.groups for one in group.pictures}
    shown = [_drawn_only(view, drawn) for view in page.views]
    views = [view_values(view, HEAT_CELLS // len(shown)) for view in shown]
    cooled = any(len(values["heat"]) < len(view.heat) for values, view in zip(views, shown, strict=True))
    return (
        page_environment(_FILTERS)
        .get_template("trace.html")
        .render(
            page=page,
            style=Markup(read_template("report.css") + read_template("trace.css")),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(f"\n{script}\n".encode()).digest()).decode("ascii"),
            data={"views": views, "height": TIMELINE_HEIGHT},
            bars=_bars(page.bars),
            width=TIMELINE_WIDTH,
            height=TIMELINE_HEIGHT,
            total_s=sum(one.seconds for one in page.shares),
            cooled=cooled,
        )
    )


def _drawn_only(view: View, drawn: set[int]) -> View:
    return dataclasses.replace(
        view,
        heat={number: heat for number, heat in view.heat.items() if number in drawn},
        marks=tuple(mark for mark in view.marks if mark.picture in drawn),
    )


def _bars(bars: Sequence[Bar]) -> list[dict[str, Any]]:
    """Left edge and width of each bar: at its time, never wider than the narrowest gap's share."""
    first, last = bars[0].time_s, bars[-1].time_s
    width = min(_WIDEST_BAR, 0.8 * TIMELINE_WIDTH / len(bars))
    span = (TIMELINE_WIDTH - width) / (last - first) if last > first else 0.0
    return [{"x": round((bar.time_s - first) * span, 2), "width": round(width, 2), "bar": bar} for bar in bars]

"""Charts of a report as inline SVG that follows the page's colours, and as PNG for documents outside it."""

import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from longvid_train.evaluation.reading import Step
from longvid_train.evaluation.statistics import moving_mean
from longvid_train.evaluation.summary import Scores, StageSummary

INK, MUTED, GRID = "#101112", "#717273", "#d1d2d3"
BEFORE, AFTER, LINE = "#a1a2a3", "#2164e1", "#2163e2"
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    BEFORE: "--before",
    AFTER: "--after",
    LINE: "--after",
}
"""Colours that the SVG hands over to the page's CSS variables; they are what the PNG shows."""

_CARD_WIDTH_IN = 3.9
_SMOOTHED_PARTS = 25
_STYLE = {
    "svg.hashsalt": "longvid",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "figure.constrained_layout.use": True,
}


def loss_svg(name: str, steps: Sequence[Step]) -> str:
    """Loss against optimiser steps: every step pale, the moving mean strong, the learning rate as a thin dashed line.

    Args:
        name: word for the ids inside the SVG, unique on the page.
        steps: the logged steps of one stage.
    """
    with chart_style():
        figure = Figure(figsize=(_CARD_WIDTH_IN, 2.5))
        _draw_loss(figure.subplots(), steps)
        return _svg(figure, name)


def scores_svg(name: str, summary: StageSummary) -> str:
    """Grouped bars of the mean score of each kind before and after a stage, with their intervals.

    Args:
        name: word for the ids inside the SVG, unique on the page.
        summary: numbers of the stage.
    """
    rows = chart_rows(summary)
    with chart_style():
        figure = Figure(figsize=(_CARD_WIDTH_IN, _bars_height_in(len(rows))))
        _draw_scores(figure.subplots(), rows)
        return _svg(figure, name)


def scores_png(summaries: Sequence[StageSummary]) -> bytes:
    """One picture of ``scores_svg`` of every stage side by side, about 1100 pixels wide, on white."""
    rows = [chart_rows(summary) for summary in summaries]
    with chart_style(), mpl.rc_context({"font.size": 9.0}):
        figure = Figure(figsize=(11, _bars_height_in(max(len(part) for part in rows)) + 0.75), facecolor="white")
        panels = figure.subplots(1, len(rows), squeeze=False)[0]
        for number, (axes, part, summary) in enumerate(zip(panels, rows, summaries, strict=True), start=1):
            _draw_scores(axes, part)
            axes.set_ylim(max(len(other) for other in rows) - 0.5, -0.5)
            title = f"Stage {number}: {summary.stage.replace('_', ' ')}"
            axes.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=10)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        return figure_png(figure)


def chart_rows(summary: StageSummary) -> list[Scores]:
    """Rows of a stage's chart: its kinds, and all questions together where there is more than one kind."""
    return [*summary.kinds, summary.overall] if len(summary.kinds) > 1 else list(summary.kinds)


def smoothing_width(steps: int) -> int:
    """Steps under the moving mean of a loss curve: an odd number, about a 25th of the run."""
    return max(1, steps // _SMOOTHED_PARTS) // 2 * 2 + 1


def _draw_loss(axes: Any, steps: Sequence[Step]) -> None:
    number, loss = [step.step for step in steps], [step.loss for step in steps]
    axes.grid(axis="y")
    axes.plot(number, loss, color=LINE, alpha=0.3, linewidth=0.8)
    axes.plot(number, moving_mean(loss, smoothing_width(len(loss))), color=LINE, linewidth=1.8)
    axes.set_ylim(0, max(loss) * 1.05 or 1.0)
    axes.margins(x=0.01)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("loss per supervised token")
    _draw_rate(axes.twinx(), number, [step.lr for step in steps])


def _draw_rate(axes: Any, number: Sequence[int], rates: Sequence[float]) -> None:
    most = max(rates)
    axes.plot(number, rates, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
    axes.set_ylim(0, most * 1.05 or 1.0)
    axes.set_yticks([0, most] if most else [0], ["0", f"{most:.0e}"] if most else ["0"])
    axes.tick_params(axis="y", labelcolor=MUTED, length=0)
    axes.set_ylabel("learning rate (dashed)", labelpad=-12)


def _draw_scores(axes: Any, rows: Sequence[Scores]) -> None:
    axes.grid(axis="x")
    height = 0.36
    for offset, label, colour in ((-height / 2, "before", BEFORE), (height / 2, "after", AFTER)):
        parts = [row.before if label == "before" else row.after for row in rows]
        means = [part.mean for part in parts]
        errors = [[part.mean - part.low for part in parts], [part.high - part.mean for part in parts]]
        places = [place + offset for place in range(len(rows))]
        whiskers = {"ecolor": INK, "elinewidth": 1.0, "capsize": 2}
        axes.barh(places, means, height, color=colour, label=f"{label} the stage", xerr=errors, error_kw=whiskers)
        for place, part in zip(places, parts, strict=True):
            axes.annotate(
                f"{part.mean:.0%}", (part.high, place), (5, 0), textcoords="offset points", va="center", fontsize=8
            )
    axes.set_yticks(range(len(rows)), [f"{row.kind}{' *' if row.words else ''}" for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1.14)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))


def _bars_height_in(rows: int) -> float:
    return 0.55 + 0.46 * rows


def chart_style() -> AbstractContextManager[None]:
    """The look of every chart, for the length of a ``with`` block."""
    context: AbstractContextManager[None] = mpl.rc_context(_STYLE)
    return context


def _svg(figure: Figure, name: str) -> str:
    stream = io.StringIO()
    undated = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(stream, format="svg", transparent=True, metadata=undated)
    return _inline(stream.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """Cut the document around ``<svg>``, make ids unique on the page, fit the width and hand colours to the page."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r'\s(?:xmlns(?::\w+)?)="[^"]*"', "", svg)
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg


def figure_png(figure: Figure) -> bytes:
    """The figure as PNG of 100 dots an inch; the same figure gives the same bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100, metadata={"Software": None})
    return stream.getvalue()

"""A grid's scores as a picture: over a parameter of numbers as lines, else a row a cell; every seed is a dot."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from longvid_train.ablation.plan import value_words
from longvid_train.ablation.sweep import Scalar, Sweep
from longvid_train.ablation.table import CellResult, kinds_of
from longvid_train.evaluation.charts import AFTER, chart_style, figure_png
from longvid_train.training.answers import OVERALL

COLOURS = ("#2164e1", "#c77b1d", "#5fa35f", "#c14a4a", "#8d6fc1", "#17a2b8", "#7a4e2d", "#a1a2a3", "#d1a54f", "#101112")
_PANEL_IN, _ROW_IN, _LINES_IN = 2.3, 0.24, 2.8


def numeric_axis(sweep: Sweep) -> str | None:
    """The varied parameter of numbers with most values, if it has three at least."""
    numeric = [
        name
        for name in sweep.varied
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in sweep.parameters[name])
    ]
    longest = max(numeric, key=lambda name: len(sweep.parameters[name]), default=None)
    return longest if longest is not None and len(sweep.parameters[longest]) > 2 else None


def results_png(sweep: Sweep, results: Sequence[CellResult]) -> bytes:
    """A panel for all questions and one for each kind; means with the standard deviation over seeds."""
    kinds, axis = kinds_of(results), numeric_axis(sweep)
    done = [cell for cell in results if cell.seeds]
    height = _LINES_IN if axis is not None else 1.1 + _ROW_IN * max(len(done), 3)
    with chart_style():
        figure = Figure(figsize=(1.2 + _PANEL_IN * len(kinds), height), facecolor="white")
        panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for panel, kind in zip(panels, kinds, strict=True):
            panel.set_title("all questions" if kind == OVERALL else kind, loc="left")
            if axis is None:
                _draw_rows(panel, done, kind)
            else:
                _draw_lines(panel, sweep, axis, done, kind)
        if axis is not None and len(sweep.varied) > 1:
            columns = min(5, len(_lines(sweep, axis, done)))
            handles = panels[0].get_legend_handles_labels()
            figure.legend(*handles, loc="outside lower center", ncols=columns, frameon=False)
        figure.suptitle(sweep.name, fontsize=11, fontweight="bold", x=0.01, ha="left")
        return figure_png(figure)


def _draw_rows(panel: Any, results: Sequence[CellResult], kind: str) -> None:
    panel.grid(axis="x")
    for place, cell in enumerate(results):
        _draw_point(panel, cell, kind, place, sideways=True, colour=AFTER)
    panel.set_yticks(range(len(results)), [cell.name for cell in results])
    panel.set_ylim(len(results) - 0.5, -0.5)
    panel.set_xlim(0, 1.02)
    panel.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))


def _draw_lines(panel: Any, sweep: Sweep, axis: str, results: Sequence[CellResult], kind: str) -> None:
    panel.grid(axis="y")
    for number, (label, cells) in enumerate(_lines(sweep, axis, results).items()):
        colour = COLOURS[number % len(COLOURS)]
        shown = [cell for cell in cells if cell.values(kind)]
        means = [sum(cell.values(kind)) / len(cell.values(kind)) for cell in shown]
        panel.plot([cell.cell[axis] for cell in shown], means, color=colour, linewidth=1.5, label=label)
        for cell in shown:
            _draw_point(panel, cell, kind, cell.cell[axis], sideways=False, colour=colour)
    panel.set_xticks(list(sweep.parameters[axis]), [str(value) for value in sweep.parameters[axis]])
    panel.set_xlabel(axis.rpartition(".")[2])
    panel.set_ylim(0, 1.02)
    panel.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))


def _lines(sweep: Sweep, axis: str, results: Sequence[CellResult]) -> dict[str, list[CellResult]]:
    """Cells that differ in ``axis`` only, by what they share."""
    others = [name for name in sweep.varied if name != axis]
    lines: dict[str, list[CellResult]] = {}
    for cell in sorted(results, key=lambda one: float(one.cell[axis])):
        lines.setdefault(", ".join(value_words(sweep, name, cell.cell[name]) for name in others), []).append(cell)
    return lines


def _draw_point(panel: Any, cell: CellResult, kind: str, place: Scalar, *, sideways: bool, colour: str) -> None:
    values = cell.values(kind)
    if not values:
        return
    found = cell.spread(kind)
    mean, deviation = found["mean"], found["sd"] or 0.0
    at = [place] * len(values)
    panel.plot(*((values, at) if sideways else (at, values)), ".", color=colour, alpha=0.4, markersize=4)
    point = (mean, place) if sideways else (place, mean)
    bar = {"xerr": deviation} if sideways else {"yerr": deviation}
    panel.errorbar(*point, **bar, color=colour, marker="o", markersize=4, capsize=2, linestyle="none")

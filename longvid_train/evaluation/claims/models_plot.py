"""The plot of a claim that compares models: accuracy of each, a row a model and number of frames."""

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from longvid_train.evaluation.charts import chart_style, figure_png
from longvid_train.evaluation.claims.cells import Scores
from longvid_train.evaluation.claims.claim import Claim
from longvid_train.evaluation.claims.pages import COLOURS

HEAD_IN, ROW_IN = 1.3, 0.28


def models_png(claim: Claim, scores: Scores) -> bytes:
    """A panel for all questions and one for each kind, with intervals of 95 %."""
    rows = [(method, count) for method in claim.grid.methods for count in claim.grid.frames]
    several = len(claim.grid.frames) > 1
    with chart_style():
        figure = Figure(figsize=(11, HEAD_IN + ROW_IN * len(rows)), facecolor="white")
        panels = figure.subplots(1, 1 + len(claim.kinds), sharey=True)
        for axes, kind in zip(panels, (None, *claim.kinds), strict=True):
            for place, (method, count) in enumerate(rows):
                found = scores.interval(method.name, count, kind=kind)
                spread = [[found.mean - found.low], [found.high - found.mean]]
                colour = COLOURS[claim.grid.methods.index(method) % len(COLOURS)]
                axes.errorbar([found.mean], [place], xerr=spread, color=colour, marker="o", capsize=2)
            axes.grid(axis="x")
            axes.set_xlim(0, 1.02)
            axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
            axes.set_title(kind or "all questions", loc="left")
        words = [f"{method.words}, {count} frames" if several else method.words for method, count in rows]
        panels[0].set_yticks(range(len(rows)), words)
        panels[0].invert_yaxis()
        figure.suptitle(claim.title, fontsize=11, fontweight="bold", x=0.01, ha="left")
        return figure_png(figure)

"""Accuracy against the measured bytes of a question's KV cache, windows in full precision included."""

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from longvid_train.evaluation.charts import chart_style, figure_png
from longvid_train.evaluation.claims.cells import Scores
from longvid_train.evaluation.claims.claim import Claim
from longvid_train.evaluation.claims.pages import draw_point

KIB = 1024.0


def cache_png(claim: Claim, scores: Scores) -> bytes:
    """A panel a number of frames, all questions together, with intervals.

    Args:
        claim: whose methods are KV caches.
        scores: of its grid, with measured bytes.
    """
    frames = claim.grid.frames
    with chart_style():
        figure = Figure(figsize=(max(7.0, 4.5 * len(frames)), 4.6), facecolor="white")
        panels = figure.subplots(1, len(frames), sharey=True, squeeze=False)[0]
        for axes, count in zip(panels, frames, strict=True):
            axes.grid(axis="y")
            for number, method in enumerate(claim.grid.methods):
                place = scores.cache_bytes(method.name, count) / KIB
                draw_point(axes, number, method.words, place, scores.interval(method.name, count))
            axes.set_xlim(left=0)
            axes.set_ylim(0, 1.02)
            axes.set_xlabel("KiB of KV cache a question")
            axes.set_title(f"{count} frames", loc="left")
        panels[0].set_ylabel("accuracy")
        panels[0].yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        figure.suptitle(claim.title, fontsize=11, fontweight="bold", x=0.01, ha="left")
        handles = panels[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False)
        return figure_png(figure)

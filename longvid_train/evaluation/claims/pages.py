"""What a claim leaves behind: a table for people, a JSON for programs and a plot."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from longvid_train.evaluation.charts import MUTED, chart_style, figure_png
from longvid_train.evaluation.claims.cells import Scores
from longvid_train.evaluation.claims.claim import Check, Claim
from longvid_train.evaluation.statistics import Interval

COLOURS = ("#101112", "#a1a2a3", "#c77b1d", "#8d6fc1", "#d1a54f", "#5fa35f", "#c14a4a", "#2164e1", "#17a2b8", "#7a4e2d")

MARKERS = ("o", "s", "^")
_BITS = (2, 3, 4, 8, 16, 32)


def checks_table(claims: Sequence[tuple[str, tuple[Check, ...]]]) -> str:
    """Markdown: paper | here | holds, a row a check of every claim, by its name."""
    rows = ["| claim | paper | here | holds |", "|---|---|---|---|"]
    for name, checks in claims:
        for check in checks:
            verdict = "yes" if check.holds else "does not reproduce here"
            rows.append(f"| {name} | {check.paper} | {check.here} | {verdict} |")
    return "\n".join(rows)


def claim_tables(claim: Claim, scores: Scores) -> str:
    """Markdown: the scores, and what questions take where they were asked one by one."""
    table = scores_table(claim, scores)
    return f"{table}\n\n{costs_table(claim, scores)}" if claim.grid.one_by_one else table


def scores_table(claim: Claim, scores: Scores) -> str:
    """Markdown: a row a method, a column a number of frames; mean over all kinds, then each of them."""
    frames = claim.grid.frames
    rows = [f"| {claim.videos} | {' | '.join(str(count) for count in frames)} |", "|---" * (len(frames) + 1) + "|"]
    for method in claim.grid.methods:
        cells = [_cell(scores, method.name, count, claim.kinds) for count in frames]
        words = method.words if claim.coding is None else f"{method.words}: {scores.bits(method.name):.2f} bits"
        rows.append(f"| {words} | {' | '.join(cells)} |")
    return "\n".join(rows)


def costs_table(claim: Claim, scores: Scores) -> str:
    """Markdown of a claim asked one by one: what a question takes under each method, means over all questions."""
    rows = ["| a question | visual tokens | new tokens | ms | new tokens/s |", "|---|---|---|---|---|"]
    for method in claim.grid.methods:
        for count in claim.grid.frames:
            cost = question_cost(scores, method.name, count)
            rows.append(
                f"| {method.words} | {cost.visual_tokens:.1f} | {cost.new_tokens:.1f} | {1000 * cost.seconds:.0f} | "
                f"{cost.new_tokens / cost.seconds:.1f} |"
            )
    return "\n".join(rows)


@dataclass(frozen=True, kw_only=True)
class QuestionCost:
    """Means over the questions of a cell."""

    visual_tokens: float
    new_tokens: float
    seconds: float


def question_cost(scores: Scores, method: str, frames: int) -> QuestionCost:
    """What the questions of a cell that was asked one by one took."""
    answers = scores.answers(method, frames)
    return QuestionCost(
        visual_tokens=fmean(one.visual_tokens for one in answers if one.visual_tokens is not None),
        new_tokens=fmean(one.new_tokens for one in answers if one.new_tokens is not None),
        seconds=fmean(one.seconds for one in answers if one.seconds is not None),
    )


def claim_values(claim: Claim, scores: Scores, checks: Sequence[Check]) -> dict[str, Any]:
    """Everything as JSON can hold it."""
    return {
        "claim": claim.name,
        "title": claim.title,
        "checks": [asdict(one) for one in checks],
        "scores": [
            {"method": method.name, "words": method.words, "frames": count, "kind": kind or "all"}
            | _interval(scores, method.name, count, kind)
            for method in claim.grid.methods
            for count in claim.grid.frames
            for kind in (None, *claim.kinds)
        ],
        "costs": [
            {"method": method.name, "frames": count} | asdict(question_cost(scores, method.name, count))
            for method in claim.grid.methods
            for count in claim.grid.frames
            if claim.grid.one_by_one
        ],
        "bits": [
            {"method": method.name, "bits_per_number": scores.bits(method.name)}
            for method in claim.grid.methods
            if claim.coding is not None
        ],
        "cache_bytes": [
            {"method": method.name, "frames": count, "bytes_per_question": scores.cache_bytes(method.name, count)}
            for method in claim.grid.methods
            for count in claim.grid.frames
            if claim.coding is not None
        ],
    }


def claim_png(claim: Claim, scores: Scores) -> bytes:
    """Accuracy over frames, or over visual tokens or bits of the cache where they were measured, with intervals."""
    draw = _draw_bits if claim.coding is not None else _draw_tokens if claim.grid.one_by_one else _draw
    with chart_style():
        figure = Figure(figsize=(11, 3.6), facecolor="white")
        panels = figure.subplots(1, 1 + len(claim.kinds), sharey=True)
        for axes, kind in zip(panels, (None, *claim.kinds), strict=True):
            draw(axes, claim, scores, kind)
        panels[0].set_ylabel("accuracy")
        panels[0].yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
        figure.suptitle(claim.title, fontsize=11, fontweight="bold", x=0.01, ha="left")
        columns = 4 if claim.coding is not None else 5  # names of caches are long
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False)
        return figure_png(figure)


def draw_point(axes: Any, number: int, words: str, place: float, found: Interval) -> None:
    """A method's accuracy at one place, with its interval; ``number`` of the method gives colour and marker."""
    axes.errorbar(
        [place],
        [found.mean],
        yerr=[[found.mean - found.low], [found.high - found.mean]],
        color=COLOURS[number % len(COLOURS)],
        marker=MARKERS[number // len(COLOURS)],
        label=words,
        capsize=2,
        linestyle="none",
    )


def _draw_tokens(axes: Any, claim: Claim, scores: Scores, kind: str | None) -> None:
    axes.grid(axis="y")
    for number, method in enumerate(claim.grid.methods):
        for count in claim.grid.frames:
            found = scores.interval(method.name, count, kind=kind)
            draw_point(axes, number, method.words, question_cost(scores, method.name, count).visual_tokens, found)
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("visual tokens")
    axes.set_title(kind or "all questions", loc="left")


def _draw_bits(axes: Any, claim: Claim, scores: Scores, kind: str | None) -> None:
    """All numbers of frames together."""
    axes.grid(axis="y")
    for number, method in enumerate(claim.grid.methods):
        found = scores.interval(method.name, *claim.grid.frames, kind=kind)
        draw_point(axes, number, method.words, scores.bits(method.name), found)
    axes.set_xscale("log", base=2)
    axes.set_xticks(_BITS, [str(bits) for bits in _BITS])
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("bits a number")
    axes.set_title(kind or "all questions", loc="left")


def _draw(axes: Any, claim: Claim, scores: Scores, kind: str | None) -> None:
    frames = claim.grid.frames
    axes.grid(axis="y")
    axes.axvline(frames[0], color=MUTED, linewidth=0.8, linestyle=(0, (3, 3)))
    for colour, method in zip(COLOURS, claim.grid.methods, strict=False):
        found = [scores.interval(method.name, count, kind=kind) for count in frames]
        means = [one.mean for one in found]
        bars = [[one.mean - one.low for one in found], [one.high - one.mean for one in found]]
        axes.errorbar(frames, means, yerr=bars, color=colour, label=method.words, linewidth=1.5, capsize=2, marker="o")
    axes.set_xscale("log", base=2)
    axes.set_xticks(frames, [str(count) for count in frames])
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("frames")
    axes.set_title(kind or "all questions", loc="left")


def _cell(scores: Scores, method: str, frames: int, kinds: Sequence[str]) -> str:
    whole = scores.interval(method, frames)
    parts = " / ".join(f"{100 * scores.values(method, frames, kind=kind).mean():.0f}" for kind in kinds)
    return f"**{100 * whole.mean:.0f}** ±{50 * (whole.high - whole.low):.0f} ({parts})"


def _interval(scores: Scores, method: str, frames: int, kind: str | None) -> dict[str, float]:
    found = scores.interval(method, frames, kind=kind)
    return {"n": found.n, "mean": found.mean, "low": found.low, "high": found.high}

"""The report as one HTML file: no script, no network; every text from data is escaped by the template engine."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from longvid_train.evaluation import formatting
from longvid_train.evaluation.asked import Asked
from longvid_train.evaluation.charts import loss_svg, scores_svg, smoothing_width
from longvid_train.evaluation.reading import Run
from longvid_train.evaluation.samples import SampleQuestion
from longvid_train.evaluation.statistics import LEVEL, RESAMPLES
from longvid_train.evaluation.summary import Scores, StageSummary, verdict
from longvid_train.evaluation.templating import Filter, data_uri, page_environment, read_template

_NUMBER_WORDS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")


@dataclass(frozen=True, kw_only=True, eq=False)
class StagePart:
    """All that the page shows of one stage."""

    run: Run
    summary: StageSummary
    samples: tuple[SampleQuestion, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class _StageView:
    """A stage with its charts drawn."""

    number: int
    name: str
    part: StagePart
    loss_chart: Markup
    scores_chart: Markup
    rows: tuple[Scores, ...]
    smoothed_over: int


def render_page(title: str, parts: Sequence[StagePart], asked: Sequence[Asked]) -> str:
    """Render the report; the same input gives the same text.

    Args:
        title: heading of the page.
        parts: the stages in order.
        asked: calls of ``longvid ask``.
    """
    template = page_environment(_FILTERS).get_template("report.html")
    return template.render(
        title=title,
        style=Markup(read_template("report.css")),
        headline=headline([part.summary for part in parts]),
        stages=[_stage_view(number, part) for number, part in enumerate(parts, start=1)],
        first=parts[0].run,
        last=parts[-1].run,
        total=total_wall_s([part.summary for part in parts]),
        hashes=_hashes(parts),
        has_samples=any(part.samples for part in parts),
        asked=asked,
        resamples=RESAMPLES,
        level=LEVEL,
    )


def headline(summaries: Sequence[StageSummary]) -> str:
    """One sentence with the held-out score before and after each stage."""
    results = [_result(stage_name(summary.stage), summary.overall) for summary in summaries]
    count = _NUMBER_WORDS[len(summaries)] if len(summaries) < len(_NUMBER_WORDS) else str(len(summaries))
    return f"{count} stage{'s' if len(summaries) != 1 else ''}, held-out questions: {'; '.join(results)}."


def _result(name: str, scores: Scores) -> str:
    before, after = formatting.percent(scores.before.mean), formatting.percent(scores.after.mean)
    return f"{name} from {before} to {after} ({score_name(scores)}, n = {scores.after.n})"


def stage_name(stage: str) -> str:
    """A stage's name for readers: ``long_video`` to ``long video``."""
    return stage.replace("_", " ")


def score_name(scores: Scores) -> str:
    """What a mean of these scores is called."""
    return "mean word score" if scores.words else "mean score" if scores.mixed else "accuracy"


def total_wall_s(summaries: Sequence[StageSummary]) -> float | None:
    """Sum of the stages' wall times; None if one is not known."""
    times = [summary.wall_s for summary in summaries]
    return None if None in times else sum(time for time in times if time is not None)


_FILTERS: tuple[Filter, ...] = (
    formatting.percent,
    formatting.interval,
    formatting.change,
    formatting.change_interval,
    formatting.duration,
    formatting.clock,
    formatting.memory,
    formatting.number,
    formatting.small,
    formatting.hardware,
    formatting.commit,
    formatting.without_placeholders,
    data_uri,
    verdict,
    score_name,
)


def _stage_view(number: int, part: StagePart) -> _StageView:
    summary = part.summary
    return _StageView(
        number=number,
        name=stage_name(summary.stage),
        part=part,
        loss_chart=Markup(loss_svg(f"loss{number}", part.run.steps)),
        scores_chart=Markup(scores_svg(f"scores{number}", summary)),
        rows=(*summary.kinds, summary.overall),
        smoothed_over=smoothing_width(len(part.run.steps)),
    )


def _hashes(parts: Sequence[StagePart]) -> list[tuple[str, str]]:
    """Every manifest with its SHA-256, once, in the order of the stages."""
    pairs = [pair for part in parts for start in part.run.starts for pair in start.manifest_sha256.items()]
    return list(dict.fromkeys(pairs))

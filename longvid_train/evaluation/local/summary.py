"""Scores to metrics: overall, by category, by length of the video. Pure."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from longvid_train.errors import UserError, nearest
from longvid_train.evaluation.local.predictions import LeftOut, Prediction
from longvid_train.evaluation.local.scores import Score
from longvid_train.evaluation.statistics import Interval, bootstrap_clusters

KIND = "kind"
USUAL_CATEGORIES = (
    KIND,
    "type",
    "category",
    "task",
    "task_type",
    "domain",
    "sub_category",
    "question_category",
    "duration",
    "duration_group",
)
"""Fields of ``meta`` by which benchmarks report: ActivityNet-QA and NExT-QA ``type``; VideoMME ``duration`` (short,
medium, long), ``domain``, ``sub_category``, ``task_type``; MLVU ``task``; LongVideoBench ``duration_group`` and
``question_category``."""

LENGTHS = ("short", "medium", "long")
"""VideoMME's names of lengths, in order."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A prediction and its score."""

    prediction: Prediction
    score: Score


@dataclass(frozen=True, kw_only=True)
class Group:
    """Some of the rows that have a right answer.

    Attributes:
        name: of the group.
        score: mean with an interval over videos; an answer out of which no option could be read counts 0.
        unparsed: such answers.
        parsed_score: mean over the others; ``None`` where there are none.
        contained: mean of `Score.contained` over open questions; ``None`` where there are none.
    """

    name: str
    score: Interval
    unparsed: int
    parsed_score: float | None
    contained: float | None


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """Groups by one field, and the mean of their means (MLVU's M-Avg)."""

    name: str
    groups: tuple[Group, ...]

    @property
    def macro(self) -> float:
        """Mean over the groups, whatever their size."""
        return sum(group.score.mean for group in self.groups) / len(self.groups)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All of an evaluation.

    Attributes:
        questions: asked for.
        answered: of them.
        left_out: could not be asked; in no score.
        without_truth: answered, but without a right answer to compare with; in no score.
        overall: over all others; ``None`` where there are none.
        breakdowns: by category and by length.
        cost: means over the answered questions.
    """

    questions: int
    answered: int
    left_out: tuple[LeftOut, ...]
    without_truth: int
    overall: Group | None
    breakdowns: tuple[Breakdown, ...]
    cost: dict[str, float]

    def values(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "questions": self.questions,
            "answered": self.answered,
            "left_out": len(self.left_out),
            "left_out_ids": [one.id for one in self.left_out],
            "without_truth": self.without_truth,
            "overall": None if self.overall is None else _group_values(self.overall),
            "by": {
                one.name: {"macro": one.macro, "groups": {group.name: _group_values(group) for group in one.groups}}
                for one in self.breakdowns
            },
            "cost": self.cost,
        }


def summarise(
    rows: Sequence[Row],
    *,
    questions: int,
    left_out: Sequence[LeftOut] = (),
    categories: Sequence[str] = (),
    duration_edges_s: Sequence[float] = (),
) -> Summary:
    """Sum up an evaluation.

    Args:
        rows: answered.
        questions: that were to be asked.
        left_out: that could not be.
        categories: fields of ``meta``, or ``"kind"``; empty takes those of `USUAL_CATEGORIES` that tell rows apart.
        duration_edges_s: rising edges of groups by length; empty makes none.

    Raises:
        UserError: a category that no row has.
    """
    scored = [row for row in rows if row.score.score is not None]
    fields = tuple(categories) or tuple(name for name in USUAL_CATEGORIES if len(_labels(scored, name)) > 1)
    breakdowns = [_by_category(scored, name) for name in fields] if scored else []
    if duration_edges_s and scored:
        breakdowns.append(_by_duration(scored, duration_edges_s))
    return Summary(
        questions=questions,
        answered=len(rows),
        left_out=tuple(left_out),
        without_truth=len(rows) - len(scored),
        overall=_group("all", scored) if scored else None,
        breakdowns=tuple(breakdowns),
        cost=_cost([row.prediction for row in rows]),
    )


def duration_label(duration_s: float, edges_s: Sequence[float]) -> str:
    """The group of a video, open below and closed above, as LongVideoBench writes it: ``(15, 60] s``."""
    low = max((edge for edge in edges_s if edge < duration_s), default=None)
    high = min((edge for edge in edges_s if edge >= duration_s), default=None)
    if high is None:
        return f"over {low:g} s"
    return f"up to {high:g} s" if low is None else f"({low:g}, {high:g}] s"


def _by_category(rows: Sequence[Row], name: str) -> Breakdown:
    labels = _labels(rows, name)
    if not labels:
        known = sorted({key for row in rows for key in row.prediction.meta} | {KIND})
        raise UserError(
            f"no row has the category '{name}'{nearest(name, known) or '.'} Fields of meta: {', '.join(known)}"
        )
    return _breakdown(name, rows, lambda row: _label(row, name), labels)


def _by_duration(rows: Sequence[Row], edges_s: Sequence[float]) -> Breakdown:
    def label(row: Row) -> str:
        return duration_label(row.prediction.duration_s, edges_s)

    ordered = sorted(rows, key=lambda row: row.prediction.duration_s)
    return _breakdown("video length", rows, label, list(dict.fromkeys(label(row) for row in ordered)))


def _breakdown(name: str, rows: Sequence[Row], label: Callable[[Row], str | None], labels: Iterable[str]) -> Breakdown:
    members: dict[str, list[Row]] = {one: [] for one in labels}
    for row in rows:
        found = label(row)
        if found is not None:
            members[found].append(row)
    return Breakdown(name=name, groups=tuple(_group(one, found) for one, found in members.items()))


def _labels(rows: Sequence[Row], name: str) -> list[str]:
    return sorted({label for row in rows if (label := _label(row, name)) is not None}, key=_place)


def _place(label: str) -> tuple[int, str]:
    """Where a label stands: VideoMME's lengths from short to long, LongVideoBench's 15, 60, 600 and 3600 s by size."""
    if label in LENGTHS:
        return LENGTHS.index(label), label
    return (int(label) if label.isdecimal() else 0), label


def _label(row: Row, name: str) -> str | None:
    value = row.prediction.kind if name == KIND else row.prediction.meta.get(name)
    return str(value) if isinstance(value, (str, int, float)) else None


def _group(name: str, rows: Sequence[Row]) -> Group:
    scores = [row.score.score for row in rows if row.score.score is not None]
    parsed = [row.score.score for row in rows if row.score.score is not None and not row.score.unparsed]
    contained = [row.score.contained for row in rows if row.score.contained is not None]
    return Group(
        name=name,
        score=bootstrap_clusters(scores, [row.prediction.video for row in rows]),
        unparsed=len(scores) - len(parsed),
        parsed_score=sum(parsed) / len(parsed) if parsed else None,
        contained=sum(contained) / len(contained) if contained else None,
    )


def _group_values(group: Group) -> dict[str, Any]:
    values = asdict(group)
    del values["name"]
    return values.pop("score") | values


def _cost(predictions: Sequence[Prediction]) -> dict[str, float]:
    if not predictions:
        return {}
    names = ("frames", "visual_tokens", "prompt_tokens", "new_tokens", "scale")
    means = {name: sum(getattr(one, name) for one in predictions) / len(predictions) for name in names}
    generate_s = sum(one.generate_s / one.batch for one in predictions)
    return means | {"new_tokens_per_s": sum(one.new_tokens for one in predictions) / generate_s if generate_s else 0.0}

"""A summary as Markdown."""

from collections.abc import Sequence

from longvid_train.evaluation.local.summary import Group, Summary

MOST_NAMED = 5


def summary_table(summary: Summary) -> str:
    """Everything a reader needs to trust the score: what was answered, what was not, and the tables."""
    parts = [_counts(summary)]
    if summary.overall is not None:
        parts.append(_table("", [summary.overall]))
    for breakdown in summary.breakdowns:
        macro = f"\n\nMean of the {len(breakdown.groups)} groups: {100 * breakdown.macro:.1f}"
        parts.append(_table(breakdown.name, breakdown.groups) + macro)
    return "\n\n".join(parts)


def _counts(summary: Summary) -> str:
    line = f"{summary.answered} of {summary.questions} questions answered"
    if summary.left_out:
        named = ", ".join(one.id for one in summary.left_out[:MOST_NAMED])
        more = ", ..." if len(summary.left_out) > MOST_NAMED else ""
        line += f"; {len(summary.left_out)} left out and in no score ({named}{more})"
    if summary.without_truth:
        line += f"; {summary.without_truth} without a right answer, in no score"
    return line


def _table(title: str, groups: Sequence[Group]) -> str:
    contained = any(group.contained is not None for group in groups)
    unparsed = any(group.unparsed for group in groups)
    head = [title or "questions", "n", "score", "95 % interval"]
    head += ["answer contained"] if contained else []
    head += ["unparsed (scored 0)", "score of parsed"] if unparsed else []
    rows = [_row(group, contained=contained, unparsed=unparsed) for group in groups]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _row(group: Group, *, contained: bool, unparsed: bool) -> list[str]:
    score = group.score
    cells = [group.name, str(score.n), _points(score.mean), f"{_points(score.low)} to {_points(score.high)}"]
    cells += [_points(group.contained)] if contained else []
    cells += [str(group.unparsed), _points(group.parsed_score)] if unparsed else []
    return cells


def _points(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"

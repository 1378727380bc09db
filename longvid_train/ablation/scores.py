"""Answers of a run to numbers: a score a question, means by kind, and what an answer took."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from longvid_train.ablation.kinds import Evaluate, Kind
from longvid_train.errors import UserError
from longvid_train.evaluation.local.predictions import read_predictions
from longvid_train.evaluation.local.run import PREDICTIONS_FILE
from longvid_train.evaluation.local.scores import score_prediction
from longvid_train.evaluation.reading import ANSWERS_AFTER_FILE
from longvid_train.training.answers import OVERALL, read_answers


@dataclass(frozen=True, kw_only=True)
class Scored:
    """One answered question.

    Attributes:
        id: of the question; the same in all cells.
        kind: of the question.
        score: from 0 to 1.
        frames: shown.
        visual_tokens: in the prompt.
    """

    id: str
    kind: str
    score: float
    frames: int
    visual_tokens: int


def read_scored(kind: Kind, output: Path) -> tuple[Scored, ...]:
    """Scores of all questions with a right answer that a step answered.

    Args:
        kind: of the step.
        output: it wrote.

    Raises:
        UserError: there are none.
    """
    scored = tuple(_evaluated(output) if isinstance(kind, Evaluate) else _trained(output))
    if not scored:
        raise UserError(f"{output}: no question with a right answer was answered; name a manifest with answers")
    return scored


def _evaluated(output: Path) -> Iterable[Scored]:
    for one in read_predictions(output / PREDICTIONS_FILE):
        score = score_prediction(one).score
        if score is not None:
            yield Scored(id=one.id, kind=one.kind, score=score, frames=one.frames, visual_tokens=one.visual_tokens)


def _trained(output: Path) -> Iterable[Scored]:
    path = output / ANSWERS_AFTER_FILE
    if not path.is_file():
        raise UserError(f"{path}: no such file; set answers.enabled in the step's config")
    for one in read_answers(path):
        yield Scored(id=one.id, kind=one.kind, score=one.correct, frames=one.frames, visual_tokens=one.visual_tokens)


def mean_scores(scored: Sequence[Scored]) -> dict[str, float]:
    """Mean score of all questions (``"overall"``) and of each kind, kinds in the order of the questions."""
    kinds: dict[str, list[float]] = {OVERALL: [one.score for one in scored]}
    for one in scored:
        kinds.setdefault(one.kind, []).append(one.score)
    return {kind: fmean(values) for kind, values in kinds.items()}


def costs(scored: Sequence[Scored]) -> dict[str, float]:
    """Means over the questions."""
    return {
        "frames": fmean(one.frames for one in scored),
        "visual_tokens": fmean(one.visual_tokens for one in scored),
    }


def result_values(identity: str, scored: Sequence[Scored]) -> dict[str, Any]:
    """What a run leaves in ``result.json``.

    Args:
        identity: of the step that answered.
        scored: its questions.
    """
    return {
        "identity": identity,
        "scores": mean_scores(scored),
        "cost": costs(scored),
        "questions": [asdict(one) for one in scored],
    }

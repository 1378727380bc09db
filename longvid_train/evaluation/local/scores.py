"""A prediction's score, and by which rule."""

from dataclasses import dataclass

from longvid_train.errors import UserError
from longvid_train.evaluation.local.choice import letter, read_choice, right_option
from longvid_train.evaluation.local.open_answer import contains, matches
from longvid_train.evaluation.local.predictions import Prediction
from longvid_train.evaluation.local.questions import MULTIPLE_CHOICE
from longvid_train.generate.scoring import SEQUENCE_KINDS, score_answer

OPEN = "open"


@dataclass(frozen=True, kw_only=True)
class Score:
    """How one prediction was scored.

    Attributes:
        id: of the question.
        metric: ``"choice"``, ``"vqa_match"`` (kind ``open``), ``"word_order"`` (captions and descriptions) or
            ``"match"``.
        score: from 0 to 1; ``None`` without a right answer.
        contained: of open answers: whether the right answer's words stand in the answer; else ``None``.
        chosen: of multiple choice: the letter that was read; ``None`` where none could be.
        rule: of multiple choice: how it was read; ``None`` where it could not be.
    """

    id: str
    metric: str
    score: float | None
    contained: float | None = None
    chosen: str | None = None
    rule: str | None = None

    @property
    def unparsed(self) -> bool:
        """Whether no option could be read out of the answer."""
        return self.metric == "choice" and self.chosen is None


def score_prediction(prediction: Prediction) -> Score:
    """Score one answer by the rule of its kind.

    Raises:
        UserError: the right answer of a multiple-choice question is none of its options.
    """
    if prediction.kind == MULTIPLE_CHOICE:
        return _choice(prediction)
    truth, answer = prediction.truth, prediction.answer
    if prediction.kind == OPEN:
        if truth is None:
            return Score(id=prediction.id, metric="vqa_match", score=None)
        found = float(contains(answer, truth))
        return Score(id=prediction.id, metric="vqa_match", score=float(matches(answer, truth)), contained=found)
    metric = "word_order" if prediction.kind in SEQUENCE_KINDS else "match"
    return Score(
        id=prediction.id,
        metric=metric,
        score=None if truth is None else score_answer(answer, truth, prediction.kind),
    )


def _choice(prediction: Prediction) -> Score:
    read = read_choice(prediction.answer, prediction.options)
    right = None if prediction.truth is None else _right(prediction, prediction.truth)
    chosen = None if read.option is None else letter(read.option)
    score = None if right is None else float(read.option == right)
    return Score(id=prediction.id, metric="choice", score=score, chosen=chosen, rule=read.rule)


def _right(prediction: Prediction, truth: str) -> int:
    try:
        return right_option(truth, prediction.options)
    except UserError as error:
        raise UserError(f"question '{prediction.id}' of {prediction.manifest}: {error}") from None

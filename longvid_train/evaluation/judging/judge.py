"""Predictions to judgements: one request an answer, in parallel, from the cache where it was answered before."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from longvid_train.endpoint import Answer, ChatClient, EndpointSettings, Failure
from longvid_train.errors import UserError
from longvid_train.evaluation.formatting import without_placeholders
from longvid_train.evaluation.judging.rubric import HIGHEST, Rubric, Verdict, check_rubric
from longvid_train.evaluation.judging.settings import JudgeSettings
from longvid_train.evaluation.local.predictions import Prediction
from longvid_train.evaluation.local.run import PREDICTIONS_FILE
from longvid_train.evaluation.local.scoring import asked_predictions
from longvid_train.evaluation.statistics import Interval, bootstrap_clusters
from longvid_train.files import sha256_file, write_json, write_text

PAIR = "pair"
_MOST_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the judge said of one answer, or of a pair.

    Attributes:
        id: of the prediction; of a pair the first one's.
        video: of the prediction.
        rubric: name.
        version: of the rubric's prompt.
        judge: the model that answered, by its own name; empty where none did.
        score: 0 to 5; ``None`` where the judge gave none.
        correct: whether the answer is right; ``None`` where that was not asked or not answered.
        tries: replies asked for.
        failure: why there is no score: ``"off_format"``, ``"cut_off"``, ``"refused"``, or ``"incomplete"`` (a pair of
            which one answer is missing; not sent); empty where there is one.
        detail: of the failure.
    """

    id: str
    video: str
    rubric: str
    version: str
    judge: str
    score: int | None
    correct: bool | None
    tries: int
    failure: str = ""
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Who was asked, and about which predictions.

    Attributes:
        model: as the settings name it.
        base_url: of the endpoint.
        parameters: of sampling; those not named were left to the endpoint.
        predictions_sha256: of the file of predictions.
    """

    model: str
    base_url: str
    parameters: dict[str, float | int]
    predictions_sha256: str


@dataclass(frozen=True, kw_only=True)
class JudgeSummary:
    """All judgements of an evaluation by one rubric.

    Attributes:
        rubric: name.
        version: of its prompt.
        asked: who was asked, and about what.
        judges: models that answered, by their own names; empty where the endpoint names none.
        judged: answers with a score.
        unjudged: ids of answers without one, by reason; in no mean.
        details: what was wrong with the first answer of each reason, such as the endpoint's sentence.
        without_truth: predictions with nothing to compare with; not sent.
        accuracy: share of right answers; ``None`` where that is not asked.
        score: mean from 0 to 5; ``None`` where nothing was judged.
        spending: requests, tokens and cost of this run so far, earlier rubrics included.
    """

    rubric: str
    version: str
    asked: Asked
    judges: tuple[str, ...]
    judged: int
    unjudged: dict[str, list[str]]
    details: dict[str, str]
    without_truth: int
    accuracy: Interval | None
    score: Interval | None
    spending: dict[str, Any]

    def table(self) -> str:
        """As Markdown."""
        names = [name for name in self.judges if name != self.asked.model]
        parts = [f"Judged for {self.rubric} (prompt {self.version}) by {self.asked.model}"]
        parts[0] += (f", which calls itself {', '.join(names)}" if names else "") + f": {self.judged} answers"
        for reason, ids in self.unjudged.items():
            named = ", ".join(ids[:_MOST_NAMED]) + (", ..." if len(ids) > _MOST_NAMED else "")
            parts[0] += f"; {len(ids)} unjudged and in no mean: {reason} ({named}; the first: {self.details[reason]})"
        lines = ["| judged | n | mean | 95 % interval |", "| --- | --- | --- | --- |"]
        if self.accuracy is not None:
            lines.append(_line("accuracy, %", self.accuracy, 100))
        if self.score is not None:
            lines.append(_line(f"score, 0 to {HIGHEST}", self.score, 1))
        return "\n\n".join([*parts, "\n".join(lines)]) if self.judged else parts[0]


def judge_folder(out: Path, settings: JudgeSettings) -> list[JudgeSummary]:
    """Judge the predictions of a folder; writes ``judgements_RUBRIC.jsonl`` and ``judge_RUBRIC.json`` for each rubric.

    An interrupted run goes on from the judge's cache, at no cost. Answers that the judge failed on are asked again only
    where the cache does not hold its failures. Summaries of other predictions are removed before the judge is asked: if
    it is down, none stands beside scores that it does not belong to.

    Raises:
        UserError: the endpoint is down or refuses the key or the settings, there are no predictions, or more than two
            rows are one pair.
    """
    digest, predictions = _read(out)
    for path in (out / _summary_file(name) for name in settings.rubrics):
        _remove_of_others(path, digest)
    asked = _asked(settings.endpoint, digest)
    with ChatClient(settings.endpoint) as client:
        return [_judge_folder(out, predictions, check_rubric(name), client, asked) for name in settings.rubrics]


def _judge_folder(
    out: Path, predictions: Sequence[Prediction], rubric: Rubric, client: ChatClient, asked: Asked
) -> JudgeSummary:
    judgements = list(judge(predictions, rubric, client))
    lines = [json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in judgements]
    write_text(out / f"judgements_{rubric.name}.jsonl", "".join(lines))
    without_truth = sum(one.truth is None for one in predictions)
    summary = summarise_judgements(judgements, rubric, client.spending.as_json(), without_truth, asked)
    write_json(out / _summary_file(rubric.name), asdict(summary))
    return summary


def _summary_file(rubric: str) -> str:
    return f"judge_{rubric}.json"


def _read(out: Path) -> tuple[str, list[Prediction]]:
    """The predictions' SHA-256 and themselves.

    It is taken first: lines that come in between make the summary look older than it is, never newer.
    """
    path = out / PREDICTIONS_FILE
    digest = sha256_file(path) if path.is_file() else ""
    return digest, asked_predictions(out)


def _remove_of_others(path: Path, digest: str) -> None:
    """Remove a summary unless it says that it is of the predictions with this SHA-256."""
    if path.is_file() and _judged_digest(path) != digest:
        path.unlink()


def _judged_digest(path: Path) -> str | None:
    """What a summary says of the predictions it is of; None where it says nothing."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    asked = summary.get("asked") if isinstance(summary, dict) else None
    return asked.get("predictions_sha256") if isinstance(asked, dict) else None


def _asked(settings: EndpointSettings, digest: str) -> Asked:
    return Asked(
        model=settings.model,
        base_url=settings.base_url,
        parameters=dict(settings.parameters),
        predictions_sha256=digest,
    )


def judge(predictions: Sequence[Prediction], rubric: Rubric, client: ChatClient) -> Iterator[Judgement]:
    """Judge every answer that has a right one to compare with, in order; incomplete pairs come last.

    Raises:
        UserError: as `judge_folder`.
    """
    known = [one for one in predictions if one.truth is not None]
    subjects, alone = _pairs(known) if rubric.paired else ([(one, one) for one in known], [])
    version = rubric.version
    replies = client.ask_all((rubric.conversation(_words(*both)) for both in subjects), rubric.parse)
    for (first, _), reply in zip(subjects, replies, strict=True):
        yield _judgement(first, rubric.name, version, reply)
    for one in alone:
        detail = f"meta.{PAIR} '{one.meta[PAIR]}' has no second row that was answered and has a right answer"
        yield _unjudged(one, rubric.name, version, "incomplete", detail, 0)


def summarise_judgements(
    judgements: Sequence[Judgement], rubric: Rubric, spending: dict[str, Any], without_truth: int, asked: Asked
) -> JudgeSummary:
    """Means over what was judged, with intervals over videos."""
    judged = [one for one in judgements if one.score is not None]
    videos = [one.video for one in judged]
    failed = [one for one in judgements if one.failure]
    reasons = sorted({one.failure for one in failed})
    right = [float(one.correct) for one in judged if one.correct is not None]
    return JudgeSummary(
        rubric=rubric.name,
        version=rubric.version,
        asked=asked,
        judges=tuple(sorted({one.judge for one in judged} - {""})),
        judged=len(judged),
        unjudged={reason: [one.id for one in failed if one.failure == reason] for reason in reasons},
        details={reason: next(one.detail for one in failed if one.failure == reason) for reason in reasons},
        without_truth=without_truth,
        accuracy=bootstrap_clusters(right, videos) if right else None,
        score=bootstrap_clusters([float(one.score or 0) for one in judged], videos) if judged else None,
        spending=spending,
    )


def _pairs(predictions: Sequence[Prediction]) -> tuple[list[tuple[Prediction, Prediction]], list[Prediction]]:
    """The pairs, and the rows whose other row was left out or has no right answer."""
    found: dict[str, list[Prediction]] = {}
    for one in predictions:
        if PAIR not in one.meta:
            raise UserError(
                f"row '{one.id}' has no meta.{PAIR}; consistency compares two rows with the same value there"
            )
        found.setdefault(str(one.meta[PAIR]), []).append(one)
    for name, members in found.items():
        if len(members) > 2:
            ids = ", ".join(one.id for one in members)
            raise UserError(f"meta.{PAIR} '{name}' stands in {len(members)} answered rows ({ids}); it must be in 2")
    pairs = [(members[0], members[1]) for members in found.values() if len(members) == 2]
    return pairs, [members[0] for members in found.values() if len(members) == 1]


def _words(first: Prediction, second: Prediction) -> dict[str, str]:
    return {
        "question": without_placeholders(first.question),
        "truth": str(first.truth),
        "answer": first.answer,
        "second_question": without_placeholders(second.question),
        "second_answer": second.answer,
    }


def _judgement(one: Prediction, rubric: str, version: str, reply: Answer[Verdict] | Failure) -> Judgement:
    if isinstance(reply, Failure):
        return _unjudged(one, rubric, version, reply.reason, reply.detail, reply.tries)
    return Judgement(
        id=one.id,
        video=one.video,
        rubric=rubric,
        version=version,
        judge=reply.model,
        score=reply.value.score,
        correct=reply.value.correct,
        tries=reply.tries,
    )


def _unjudged(one: Prediction, rubric: str, version: str, failure: str, detail: str, tries: int) -> Judgement:
    return Judgement(
        id=one.id,
        video=one.video,
        rubric=rubric,
        version=version,
        judge="",
        score=None,
        correct=None,
        tries=tries,
        failure=failure,
        detail=detail,
    )


def _line(name: str, value: Interval, factor: int) -> str:
    mean, low, high = (factor * number for number in (value.mean, value.low, value.high))
    return f"| {name} | {value.n} | {mean:.2f} | {low:.2f} to {high:.2f} |"

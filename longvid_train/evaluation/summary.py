"""The numbers of a report: scores by kind before and after a stage, tokens, memory and time."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from longvid_train.evaluation.reading import Run
from longvid_train.evaluation.statistics import Interval, bootstrap_mean
from longvid_train.generate.record import AnswerRecord as Answer
from longvid_train.generate.scoring import SEQUENCE_KINDS

OVERALL = "overall"


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Mean scores of the same questions before and after a stage.

    Attributes:
        kind: kind of question, or ``"overall"``.
        words: every score is a word score of a sentence.
        mixed: some scores are word scores and some exact matches.
        before: mean before the first step.
        after: mean after the last step.
        change: mean of the differences, after less before, question by question.
    """

    kind: str
    words: bool
    mixed: bool
    before: Interval
    after: Interval
    change: Interval


@dataclass(frozen=True, kw_only=True)
class Load:
    """Mean and largest value over the held-out questions."""

    mean: float
    most: int


@dataclass(frozen=True, kw_only=True)
class StageSummary:
    """What a stage reached and cost.

    Attributes:
        stage: the stage's name.
        folder: the run folder.
        overall: scores of all questions; a mix of exact matches and word scores if the kinds are mixed.
        kinds: scores of each kind, in the order of the held-out rows.
        optimiser_steps: steps trained.
        last_loss: loss of the last step.
        frames: distinct frames a question shows.
        visual_tokens: visual tokens a question puts before the language model.
        prompt_tokens: all tokens of a question's prompt, visual ones included.
        tokens_per_s: median over the training steps.
        frames_per_s: median over the training steps.
        peak_bytes: largest memory of the training process.
        wall_s: seconds of the last start, export and answers included; None if not known.
        starts: how often the run was started or resumed.
    """

    stage: str
    folder: str
    overall: Scores
    kinds: tuple[Scores, ...]
    optimiser_steps: int
    last_loss: float
    frames: Load
    visual_tokens: Load
    prompt_tokens: Load
    tokens_per_s: float
    frames_per_s: float
    peak_bytes: int
    wall_s: float | None
    starts: int


def summarise(run: Run, *, seed: int = 0) -> StageSummary:
    """Compute the numbers of one run."""
    kinds = list(dict.fromkeys(answer.kind for answer in run.after))
    return StageSummary(
        stage=run.stage,
        folder=str(run.folder),
        overall=_scores(OVERALL, run.before, run.after, seed),
        kinds=tuple(_scores(kind, _of_kind(run.before, kind), _of_kind(run.after, kind), seed) for kind in kinds),
        optimiser_steps=len(run.steps),
        last_loss=run.steps[-1].loss,
        frames=_load([answer.frames for answer in run.after]),
        visual_tokens=_load([answer.visual_tokens for answer in run.after]),
        prompt_tokens=_load([answer.prompt_tokens for answer in run.after]),
        tokens_per_s=median(step.tokens_per_s for step in run.steps),
        frames_per_s=median(step.frames_per_s for step in run.steps),
        peak_bytes=int(max(step.peak_bytes for step in run.steps)),
        wall_s=run.wall_s,
        starts=len(run.starts),
    )


def as_json(summary: StageSummary) -> dict[str, Any]:
    """The summary as JSON-ready values; ``kinds`` maps each kind to its scores."""
    values = asdict(summary)
    values["kinds"] = {scores["kind"]: scores for scores in values["kinds"]}
    return values


def verdict(answer: Answer) -> str:
    """``"right"``, ``"wrong"``, or ``"partly right"`` for a sentence with some of its words right."""
    if answer.correct == 1:
        return "right"
    return "partly right" if answer.correct > 0 else "wrong"


def _scores(kind: str, before: Sequence[Answer], after: Sequence[Answer], seed: int) -> Scores:
    pairs = list(zip(before, after, strict=True))
    words = {answer.kind in SEQUENCE_KINDS for answer in after}
    return Scores(
        kind=kind,
        words=words == {True},
        mixed=len(words) > 1,
        before=bootstrap_mean([answer.correct for answer in before], seed=seed),
        after=bootstrap_mean([answer.correct for answer in after], seed=seed),
        change=bootstrap_mean([late.correct - early.correct for early, late in pairs], seed=seed),
    )


def _of_kind(answers: Sequence[Answer], kind: str) -> list[Answer]:
    return [answer for answer in answers if answer.kind == kind]


def _load(values: Sequence[int]) -> Load:
    return Load(mean=fmean(values), most=max(values))

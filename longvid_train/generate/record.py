"""One line of a run's ``answers_*.jsonl``: training writes it, the report reads it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AnswerRecord:
    """One answered question; ``correct`` is its score from 0 to 1 (``longvid_train.generate.scoring``)."""

    id: str
    kind: str
    question: str
    answer: str
    truth: str
    correct: float
    frames: int
    visual_tokens: int
    prompt_tokens: int

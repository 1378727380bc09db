"""What a judge is asked: prompts in files of their own, each with a version, and replies of one strict form."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from longvid_train.endpoint.messages import Conversation, Message, OffFormatError
from longvid_train.errors import UserError, nearest

PROMPTS = Path(__file__).parent / "prompts"
LOWEST, HIGHEST = 0, 5
_VERSION = "version: "


@dataclass(frozen=True)
class Verdict:
    """What a judge said: a whole score from 0 to 5, and whether the answer is right where that is asked."""

    score: int
    correct: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Rubric:
    """One thing to judge.

    Attributes:
        name: also that of the prompt's file.
        asks_correct: the judge also says whether the answer is right (Video-ChatGPT's accuracy).
        paired: two answers are compared: predictions with the same ``meta.pair`` (Video-ChatGPT's consistency).
        source: where the measure comes from.
    """

    name: str
    source: str
    asks_correct: bool = False
    paired: bool = False

    @property
    def version(self) -> str:
        """The prompt's version, and the first digits of its SHA-256: two wordings are never mistaken for one."""
        text = self._file()
        number = text.splitlines()[0].removeprefix(_VERSION)
        return f"{number}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def conversation(self, words: Mapping[str, str]) -> Conversation:
        """The request about one answer.

        Args:
            words: ``question``, ``truth``, ``answer``; of a pair also ``second_question`` and ``second_answer``.
        """
        _, _, body = self._file().partition("\n")
        return (Message("user", Template(body).substitute(words).strip()),)

    def parse(self, text: str) -> Verdict:
        """Read a reply.

        Raises:
            OffFormatError: it is anything but the one JSON object asked for.
        """
        wanted = {"correct", "score"} if self.asks_correct else {"score"}
        example = '{"correct": "yes", "score": 4}' if self.asks_correct else '{"score": 4}'
        try:
            value = json.loads(text, object_pairs_hook=_without_repeats)
        except OffFormatError:
            raise
        except (ValueError, RecursionError) as error:
            raise OffFormatError(f"write one JSON object and nothing else, such as {example}") from error
        if not isinstance(value, dict) or set(value) != wanted:
            raise OffFormatError(f"the JSON object must have {' and '.join(sorted(wanted))} only, such as {example}")
        score, correct = value["score"], value.get("correct")
        if isinstance(score, bool) or not isinstance(score, int) or not LOWEST <= score <= HIGHEST:
            raise OffFormatError(f"score must be a whole number from {LOWEST} to {HIGHEST}")
        if self.asks_correct and correct not in ("yes", "no"):
            raise OffFormatError('correct must be "yes" or "no"')
        return Verdict(score, correct == "yes" if self.asks_correct else None)

    def _file(self) -> str:
        return (PROMPTS / f"{self.name}.txt").read_text(encoding="utf-8")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise OffFormatError("the JSON object must have each key once")
    return result


_GENERATIVE = "Video-ChatGPT (Maaz et al. 2023), generative performance; LLaMA-VID Table 2, ZoomVLM Table 1"
RUBRICS: dict[str, Rubric] = {
    one.name: one
    for one in (
        Rubric(
            name="accuracy", source="Video-ChatGPT (Maaz et al. 2023), zero-shot question answering", asks_correct=True
        ),
        Rubric(name="correctness", source=_GENERATIVE),
        Rubric(name="detail", source=_GENERATIVE),
        Rubric(name="context", source=_GENERATIVE),
        Rubric(name="temporal", source=_GENERATIVE),
        Rubric(name="consistency", source=_GENERATIVE, paired=True),
        Rubric(name="description", source="Video Detail Description (Zhang et al. 2024); ZoomVLM Table 1"),
    )
}
"""What can be judged. The wording of the prompts is this project's own; the measures are those of the sources."""


def check_rubric(name: str) -> Rubric:
    """The rubric called ``name``.

    Raises:
        UserError: there is none.
    """
    if name not in RUBRICS:
        raise UserError(
            f"rubric '{name}' is unknown{nearest(name, list(RUBRICS)) or '.'} Rubrics: {', '.join(RUBRICS)}"
        )
    return RUBRICS[name]

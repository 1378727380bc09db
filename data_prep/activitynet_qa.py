"""Evaluation: ActivityNet-QA, open questions about untrimmed videos (test: 8,000 questions on 800 videos).

Layout (github.com/MILVLG/activitynet-qa): test_q.json, an array of {"video_name", "question", "question_id"}, and
test_a.json, an array of {"answer", "type", "question_id"}; videos are v_NAME.mp4, .mkv, ... in one folder. Questions
come without a question mark, which is added.

example:
  python -m data_prep.activitynet_qa --questions test_q.json --answers test_a.json --videos data/activitynet/videos \\
      --out data/activitynet/qa_test.jsonl
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.answers import as_question, open_question
from data_prep.command_line import run_source
from data_prep.fields import name_field, text_field, whole_field
from data_prep.media import MediaFolder
from data_prep.outcome import BadRecordError
from data_prep.reading.inputs import InputFile
from data_prep.reading.item import Item
from data_prep.reading.json_array import read_json_array
from data_prep.source import Origin
from data_prep.video_qa import SPLITS
from longvid_train.console import argument
from longvid_train.data.manifest import Sample
from longvid_train.errors import UserError

TYPES = (
    "motion",
    "spatial relation",
    "temporal relation",
    "yes/no",
    "color",
    "object",
    "location",
    "number",
    "other",
)
"""What field ``type`` counts (the data set's README)."""

ORIGIN = Origin("activitynet_qa", "MIT; ActivityNet videos belong to their owners", "1.0")


@dataclass(frozen=True)
class Answer:
    """An answer and its type."""

    text: str
    type: str


@dataclass(frozen=True)
class ActivityNetQA:
    """Questions joined with their answers.

    Attributes:
        questions: the file of questions.
        answers_file: the file of answers.
        answers: answers by question_id.
        videos: where the videos are.
        split: name of the split; part of the rows' ids.
    """

    questions: InputFile
    answers_file: InputFile
    answers: Mapping[str, Answer]
    videos: MediaFolder
    split: str
    origin: Origin = ORIGIN

    def inputs(self) -> Sequence[InputFile]:
        """Questions and answers."""
        return (self.questions, self.answers_file)

    def settings(self) -> Mapping[str, Any]:
        """What the rows depend on."""
        return {"videos": self.videos.prefix, "split": self.split}

    def read(self) -> Iterator[Item]:
        """All questions."""
        return read_json_array(self.questions)

    def key(self, value: Any) -> str:
        """Split and name of the question."""
        return f"{self.split}/{name_field(value, 'question_id')}"

    def convert(self, value: Any, row_id: str) -> Sequence[Sample]:
        """One row; its ``meta`` holds what scoring needs."""
        question_id = name_field(value, "question_id")
        answer = self.answers.get(question_id)
        if answer is None:
            raise BadRecordError(f"no answer in {self.answers_file.short_name}", question_id)
        name = text_field(value, "video_name")
        video = self.videos.find_any(name if name.startswith("v_") else f"v_{name}")
        meta = {"kind": "open", "answer": answer.text, "type": answer.type, "split": self.split}
        question = as_question(text_field(value, "question"))
        return [open_question(row_id=row_id, video=video, question=question, answer=answer.text, meta=meta)]


def read_answers(file: InputFile) -> dict[str, Answer]:
    """Answers by question_id.

    Raises:
        UserError: an answer is broken or stands twice.
    """
    answers: dict[str, Answer] = {}
    for item in read_json_array(file):
        try:
            name = name_field(item.value, "question_id")
            kind = whole_field(item.value, "type")
            answer = Answer(name_field(item.value, "answer"), TYPES[kind] if 0 <= kind < len(TYPES) else str(kind))
        except BadRecordError as error:
            raise UserError(f"{item.where}: {error.reason} ({error.detail}); mend the answers") from error
        if name in answers:
            raise UserError(f"{item.where}: question_id '{name}' is answered twice; mend the answers")
        answers[name] = answer
    return answers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this source."""
    add = parser.add_argument
    add("--questions", type=argument(InputFile.parse), required=True, metavar="JSON", help="e.g. test_q.json")
    add("--answers", type=argument(InputFile.parse), required=True, metavar="JSON", help="e.g. test_a.json")
    add("--videos", type=Path, required=True, help="folder that holds v_NAME.mp4, v_NAME.mkv, ...")
    add("--split", choices=SPLITS, default="test", help="what the annotations are (test)")


def make_source(arguments: argparse.Namespace) -> ActivityNetQA:
    """The source that the options describe."""
    videos = MediaFolder.open(arguments.videos, arguments.out, "video")
    answers = read_answers(arguments.answers)
    return ActivityNetQA(arguments.questions, arguments.answers, answers, videos, arguments.split)


if __name__ == "__main__":
    sys.exit(run_source("activitynet_qa"))

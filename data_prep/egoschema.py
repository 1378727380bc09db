"""Evaluation: EgoSchema, multiple choice about three-minute first-person videos (5,000 questions, 500 with answers).

Layout (github.com/egoschema/EgoSchema): questions.json, an array of {"q_uid", "google_drive_id", "question", "option 0"
to "option 4"}; subset_answers.json, an object of q_uid -> 0 to 4; videos are Q_UID.mp4. With --answers only the
questions that have one become rows; without, all do, to be asked and sent to the benchmark's server.

example:
  python -m data_prep.egoschema --questions questions.json --answers subset_answers.json \\
      --videos data/egoschema/videos --out data/egoschema/subset.jsonl
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.answers import as_question, multiple_choice
from data_prep.command_line import run_source
from data_prep.fields import text_field
from data_prep.media import MediaFolder
from data_prep.outcome import DroppedError
from data_prep.reading.inputs import InputFile
from data_prep.reading.item import Item
from data_prep.reading.json_array import read_json_array
from data_prep.reading.json_object import read_json_object
from data_prep.source import Origin
from longvid_train.console import argument
from longvid_train.data.manifest import Sample
from longvid_train.errors import UserError

OPTIONS = tuple(f"option {number}" for number in range(5))

ORIGIN = Origin("egoschema", "Ego4D licence", "2023")


@dataclass(frozen=True)
class EgoSchema:
    """Questions with five options.

    Attributes:
        questions: questions.json.
        videos: where the videos are.
        answers: number of the right option by q_uid; None: rows without answers.
        answers_file: the file that ``answers`` was read from.
    """

    questions: InputFile
    videos: MediaFolder
    answers: Mapping[str, int] | None = None
    answers_file: InputFile | None = None
    origin: Origin = ORIGIN

    def inputs(self) -> Sequence[InputFile]:
        """Questions and answers."""
        return (self.questions,) if self.answers_file is None else (self.questions, self.answers_file)

    def settings(self) -> Mapping[str, Any]:
        """What the rows depend on."""
        return {"videos": self.videos.prefix}

    def read(self) -> Iterator[Item]:
        """All questions."""
        return read_json_array(self.questions)

    def key(self, value: Any) -> str:
        """The question's q_uid, which is the video's name too."""
        return text_field(value, "q_uid")

    def convert(self, value: Any, row_id: str) -> Sequence[Sample]:
        """One row; the answer is the letter of the right option."""
        key = self.key(value)
        if self.answers is not None and key not in self.answers:
            raise DroppedError("the question has no public answer")
        row = multiple_choice(
            row_id=row_id,
            video=self.videos.find_any(key),
            question=as_question(text_field(value, "question")),
            options=[text_field(value, name) for name in OPTIONS],
            correct=None if self.answers is None else self.answers[key],
            meta={"q_uid": key},
        )
        return [row]


def read_answers(file: InputFile) -> dict[str, int]:
    """Number of the right option by q_uid.

    Raises:
        UserError: the file is no object of whole numbers from 0 to 4.
    """
    answers = read_json_object(file)
    for key, answer in answers.items():
        if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(OPTIONS):
            raise UserError(f"{file.name}: the answer to '{key}' is {answer}; it must be 0 to {len(OPTIONS) - 1}")
    return answers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this source."""
    add = parser.add_argument
    add("--questions", type=argument(InputFile.parse), required=True, metavar="JSON", help="questions.json")
    add("--answers", type=argument(InputFile.parse), metavar="JSON", help="subset_answers.json")
    add("--videos", type=Path, required=True, help="folder that holds Q_UID.mp4")


def make_source(arguments: argparse.Namespace) -> EgoSchema:
    """The source that the options describe."""
    videos = MediaFolder.open(arguments.videos, arguments.out, "video")
    answers = None if arguments.answers is None else read_answers(arguments.answers)
    return EgoSchema(arguments.questions, videos, answers, arguments.answers)


if __name__ == "__main__":
    sys.exit(run_source("egoschema"))

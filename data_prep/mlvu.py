"""Evaluation: MLVU's development set, seven tasks of multiple choice about long videos (2,174 questions).

Layout (huggingface.co/datasets/MLVU/MVLU): json/1_plotQA.json, 2_needle.json, 3_ego.json, 4_count.json, 5_order.json,
6_anomaly_reco.json and 7_topic_reasoning.json, arrays of {"video", "duration", "question", "candidates", "answer" (one
of the candidates), "question_type"}; videos are video/1_plotQA/VIDEO and so on. Questions of the generation tasks
(8_sub_scene.json, 9_summary.json), which MLVU's own judge scores, are dropped. `meta.task` is the name that MLVU's
tables and lmms-eval's mlvu_dev have; the mean over tasks is its M-Avg.

example:
  python -m data_prep.mlvu --annotations MLVU/json/[1-7]_*.json --videos data/mlvu/video --out data/mlvu/dev.jsonl
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data_prep.answers import as_question, multiple_choice
from data_prep.command_line import run_source
from data_prep.fields import field, list_field, number_field, shown, text_field
from data_prep.media import MediaFolder
from data_prep.outcome import BadRecordError, DroppedError
from data_prep.reading.inputs import InputFile
from data_prep.reading.item import Item
from data_prep.reading.json_array import read_json_array
from data_prep.source import Origin
from longvid_train.console import argument
from longvid_train.data.manifest import Sample

FOLDERS = {
    "plotQA": "1_plotQA",
    "needle": "2_needle",
    "ego": "3_ego",
    "count": "4_count",
    "order": "5_order",
    "anomaly_reco": "6_anomaly_reco",
    "topic_reasoning": "7_topic_reasoning",
}
"""Of the videos, by task."""

RENAMED = {"findNeedle": "needle"}
"""``question_type`` where it is not the task's name."""

GENERATION = ("subPlot", "summary")

ORIGIN = Origin("mlvu", "CC-BY-NC-SA-4.0; videos belong to their owners", "dev, 2024")


@dataclass(frozen=True)
class Mlvu:
    """Questions with candidates.

    Attributes:
        annotations: the files of the tasks.
        videos: the folder that holds a folder a task.
    """

    annotations: tuple[InputFile, ...]
    videos: MediaFolder
    origin: Origin = ORIGIN

    def inputs(self) -> Sequence[InputFile]:
        """The files of the tasks."""
        return self.annotations

    def settings(self) -> Mapping[str, Any]:
        """What the rows depend on."""
        return {"videos": self.videos.prefix}

    def read(self) -> Iterator[Item]:
        """All questions, file after file."""
        for file in self.annotations:
            yield from read_json_array(file)

    def key(self, value: Any) -> str:
        """Task and video; MLVU has no numbers of questions, so a video's further ones get theirs here."""
        return f"{_task(value)}/{PurePosixPath(text_field(value, 'video')).stem}"

    def convert(self, value: Any, row_id: str) -> Sequence[Sample]:
        """One row; the answer is the letter of the right candidate."""
        task = _task(value)
        if task in GENERATION:
            raise DroppedError("a generation task, which MLVU's own judge scores", task)
        if task not in FOLDERS:
            raise BadRecordError("field 'question_type' is no task of MLVU", shown(task))
        candidates = [_candidate(one) for one in list_field(value, "candidates")]
        answer = _candidate(field(value, "answer"))
        if answer not in candidates:
            raise BadRecordError("the answer is not among the candidates", shown(answer))
        name = text_field(value, "video")
        row = multiple_choice(
            row_id=row_id,
            video=self.videos.find(f"{FOLDERS[task]}/{self.videos.checked(name)}"),
            question=as_question(text_field(value, "question")),
            options=candidates,
            correct=candidates.index(answer),
            meta={"task": task, "video": name, "duration_s": number_field(value, "duration")},
        )
        return [row]


def _task(value: Any) -> str:
    kind = text_field(value, "question_type")
    return RENAMED.get(kind, kind)


def _candidate(value: Any) -> str:
    """Text, or a number as text: counts are numbers in some files."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise BadRecordError("a candidate or the answer is not text", shown(value))
    return value.strip()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this source."""
    add = parser.add_argument
    add("--annotations", type=argument(InputFile.parse), nargs="+", required=True, metavar="JSON", help="json/*.json")
    add("--videos", type=Path, required=True, help="folder that holds 1_plotQA to 7_topic_reasoning")


def make_source(arguments: argparse.Namespace) -> Mlvu:
    """The source that the options describe."""
    return Mlvu(tuple(arguments.annotations), MediaFolder.open(arguments.videos, arguments.out, "video"))


if __name__ == "__main__":
    sys.exit(run_source("mlvu"))

"""Evaluation: NExT-QA, multiple choice about causes and order (val: 4,996 questions, test: 8,564).

Layout (github.com/doc-doc/NExT-QA): train.csv, val.csv, test.csv with the columns video, frame_count, width, height,
question, answer (0 to 4), qid, type (CW, CH, TN, TC, TP, DO, DL, DC), a0 to a4; map_vid_vidorID.json tells that video
4010069381 is NExTVideo/1164/4010069381.mp4. Without --map the videos lie in one folder.

example:
  python -m data_prep.nextqa --csv nextqa/val.csv --map nextqa/map_vid_vidorID.json --videos data/NExTVideo \\
      --split val --out data/nextqa_val.jsonl
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.answers import as_question, multiple_choice
from data_prep.command_line import run_source
from data_prep.fields import text_field, whole_field
from data_prep.media import MediaFolder
from data_prep.outcome import BadRecordError
from data_prep.reading.inputs import InputFile
from data_prep.reading.item import Item
from data_prep.reading.json_object import read_json_object
from data_prep.reading.table import read_table
from data_prep.source import Origin
from data_prep.video_qa import SPLITS
from longvid_train.console import argument
from longvid_train.data.manifest import Sample
from longvid_train.errors import UserError

OPTIONS = ("a0", "a1", "a2", "a3", "a4")
COLUMNS = ("video", "question", "answer", "qid", "type", *OPTIONS)

ORIGIN = Origin("nextqa", "MIT; VidOR videos belong to their owners", "1.0")


@dataclass(frozen=True)
class NextQA:
    """Questions with five options.

    Attributes:
        table: the CSV file.
        videos: where the videos are.
        split: name of the split; part of the rows' ids.
        places: path of a video below the folder, without suffix, by its number; None if all lie in the folder itself.
        places_file: the file that ``places`` was read from.
    """

    table: InputFile
    videos: MediaFolder
    split: str
    places: Mapping[str, str] | None = None
    places_file: InputFile | None = None
    origin: Origin = ORIGIN

    def inputs(self) -> Sequence[InputFile]:
        """The table and the map."""
        return (self.table,) if self.places_file is None else (self.table, self.places_file)

    def settings(self) -> Mapping[str, Any]:
        """What the rows depend on."""
        return {"videos": self.videos.prefix, "split": self.split}

    def read(self) -> Iterator[Item]:
        """All questions."""
        return read_table(self.table, COLUMNS)

    def key(self, value: Any) -> str:
        """Split, video and number of the question on it."""
        return f"{self.split}/{text_field(value, 'video')}_{text_field(value, 'qid')}"

    def convert(self, value: Any, row_id: str) -> Sequence[Sample]:
        """One row; the answer is the letter of the right option."""
        number = value["video"]
        if self.places is not None and number not in self.places:
            raise BadRecordError("the video is not in the map", number)
        place = number if self.places is None else self.places[number]
        row = multiple_choice(
            row_id=row_id,
            video=self.videos.find_any(place),
            question=as_question(text_field(value, "question")),
            options=[text_field(value, name) for name in OPTIONS],
            correct=whole_field(value, "answer"),
            meta={"type": value["type"], "split": self.split},
        )
        return [row]


def read_places(file: InputFile) -> dict[str, str]:
    """Path of each video below the folder.

    Raises:
        UserError: the file is no object of texts.
    """
    places = read_json_object(file)
    wrong = next((name for name, place in places.items() if not isinstance(place, str)), None)
    if wrong is not None:
        raise UserError(f"{file.name}: the path of video '{wrong}' is not text")
    return places


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this source."""
    add = parser.add_argument
    add("--csv", type=argument(InputFile.parse), required=True, metavar="CSV", help="e.g. val.csv")
    add("--map", type=argument(InputFile.parse), metavar="JSON", help="map_vid_vidorID.json")
    add("--videos", type=Path, required=True, help="folder of the videos")
    add("--split", choices=SPLITS, required=True, help="what the table is")


def make_source(arguments: argparse.Namespace) -> NextQA:
    """The source that the options describe."""
    videos = MediaFolder.open(arguments.videos, arguments.out, "video")
    places = None if arguments.map is None else read_places(arguments.map)
    return NextQA(arguments.csv, videos, arguments.split, places, arguments.map)


if __name__ == "__main__":
    sys.exit(run_source("nextqa"))

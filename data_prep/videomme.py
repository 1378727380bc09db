"""Evaluation: Video-MME, four options, about videos of 11 s to an hour (2,700 questions about 900 videos).

Layout (huggingface.co/datasets/lmms-lab/Video-MME): videomme/test-00000-of-00001.parquet with the columns video_id,
duration (short, medium, long), domain, sub_category, videoID, question_id, task_type, question, options ("A. Apples."
and so on) and answer (a letter); the archives hold data/VIDEOID.mp4 and subtitle/VIDEOID.srt. 744 of the videos have
subtitles; with --subtitles their lines are cleaned of markup and written below --srt, and the others' rows have none.

example:
  python -m data_prep.videomme --annotations videomme/test-00000-of-00001.parquet --videos data/videomme/data \\
      --subtitles data/videomme/subtitle --out data/videomme/test.jsonl
"""

import argparse
import re
import string
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.answers import as_question, multiple_choice
from data_prep.command_line import run_source
from data_prep.fields import list_field, shown, text_field
from data_prep.media import MediaFolder
from data_prep.outcome import BadRecordError
from data_prep.reading.inputs import InputFile
from data_prep.reading.item import Item
from data_prep.reading.parquet_rows import read_parquet_rows
from data_prep.source import Origin
from data_prep.subtitles import MadeSubtitles, moved
from longvid_train.console import argument
from longvid_train.data.manifest import Sample
from longvid_train.errors import UserError
from longvid_train.video.subtitles import read_subtitles

REPORTED = ("duration", "domain", "sub_category", "task_type")
"""What the benchmark's tables are by."""

COLUMNS = ("videoID", "question_id", "question", "options", "answer", *REPORTED)

ORIGIN = Origin("videomme", "Video-MME terms: academic research; videos belong to their owners", "2024")


@dataclass(frozen=True)
class VideoMME:
    """Questions with four options.

    Attributes:
        annotations: the Parquet file.
        videos: where the videos are.
        subtitles: folder of VIDEOID.srt; None leaves subtitles out.
        made: where the cleaned ones go.
    """

    annotations: InputFile
    videos: MediaFolder
    subtitles: Path | None = None
    made: MadeSubtitles | None = None
    origin: Origin = ORIGIN

    def inputs(self) -> Sequence[InputFile]:
        """The annotations."""
        return (self.annotations,)

    def settings(self) -> Mapping[str, Any]:
        """What the rows depend on."""
        return {"videos": self.videos.prefix, "subtitles": None if self.made is None else self.made.folder.prefix}

    def read(self) -> Iterator[Item]:
        """All questions."""
        return read_parquet_rows(self.annotations, COLUMNS)

    def key(self, value: Any) -> str:
        """The question's id, e.g. ``001-1``."""
        return text_field(value, "question_id")

    def convert(self, value: Any, row_id: str) -> Sequence[Sample]:
        """One row; the answer is the letter of the right option."""
        name = text_field(value, "videoID")
        row = multiple_choice(
            row_id=row_id,
            video=self.videos.find_any(name),
            question=as_question(text_field(value, "question")),
            options=[_option(option, number) for number, option in enumerate(_options(value))],
            correct=_number(value),
            meta={"question_id": self.key(value), "video_id": name, **{at: text_field(value, at) for at in REPORTED}},
            subtitles=self._spoken(name),
        )
        return [row]

    def _spoken(self, name: str) -> str | None:
        if self.subtitles is None or self.made is None:
            return None
        path = self.subtitles / f"{self.videos.checked(name)}.srt"
        if not path.is_file():
            return None
        try:
            lines = read_subtitles(path)
        except UserError as error:
            raise BadRecordError("the subtitles are broken", str(error)) from error
        return self.made.write(name, [moved(line, 0.0) for line in lines])


def _options(value: Any) -> list[str]:
    options = list_field(value, "options")
    wrong = next((option for option in options if not isinstance(option, str) or not option.strip()), None)
    if wrong is not None:
        raise BadRecordError("an option is not text", shown(wrong))
    return options


def _option(text: str, number: int) -> str:
    """The option without its own letter, which the row's question writes."""
    return re.sub(rf"^{string.ascii_uppercase[number]}[.)]\s*", "", text.strip())


def _number(value: Any) -> int:
    answer = text_field(value, "answer").strip()
    if len(answer) != 1 or answer not in string.ascii_uppercase:
        raise BadRecordError("field 'answer' is not a letter", shown(answer))
    return string.ascii_uppercase.index(answer)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this source."""
    add = parser.add_argument
    add("--annotations", type=argument(InputFile.parse), required=True, metavar="PARQUET", help="the test split")
    add("--videos", type=Path, required=True, help="folder that holds VIDEOID.mp4")
    add("--subtitles", type=Path, metavar="FOLDER", help="folder that holds VIDEOID.srt")
    add("--srt", type=Path, metavar="FOLDER", help="where cleaned ones are written (NAME_srt beside OUT)")


def make_source(arguments: argparse.Namespace) -> VideoMME:
    """The source that the options describe.

    Raises:
        UserError: a folder is missing, or that of the subtitles holds none.
    """
    videos, made = MediaFolder.open(arguments.videos, arguments.out, "video"), None
    if arguments.subtitles is not None:
        if not any(arguments.subtitles.glob("*.srt")):
            raise UserError(f"--subtitles {arguments.subtitles} holds no VIDEOID.srt; unpack subtitle.zip there")
        made = MadeSubtitles.open(arguments.srt, arguments.out)
    return VideoMME(arguments.annotations, videos, arguments.subtitles, made)


if __name__ == "__main__":
    sys.exit(run_source("videomme"))

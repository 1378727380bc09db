"""Evaluation: LongVideoBench, up to five options, about videos of 8 s to an hour with subtitles (val: 1,337 questions).

Layout (huggingface.co/datasets/longvideobench/LongVideoBench): lvb_val.json, an array of {"id", "video_id",
"video_path", "question", "candidates", "correct_choice" (from 0), "subtitle_path", "starting_timestamp_for_subtitles",
"duration", "duration_group" (15, 60, 600, 3600), "question_category", "topic_category", "level", ...};
lvb_test_wo_gt.json lacks correct_choice: its rows can be asked, and their answers go to the benchmark's server. The
archives hold videos/VIDEO_PATH and subtitles/SUBTITLE_PATH, JSON arrays of {"timestamp": [start, end], "text"} or
{"start": "00:00:01.000", "end", "line"}.

Videos were cut out of longer ones, and subtitles are in the time of those: with --subtitles their lines are moved to
the video's own time, cut to it and written below --srt.

example:
  python -m data_prep.longvideobench --annotations LongVideoBench/lvb_val.json --videos data/lvb/videos \\
      --subtitles data/lvb/subtitles --split val --out data/lvb/val.jsonl
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data_prep.answers import as_question, multiple_choice
from data_prep.command_line import run_source
from data_prep.fields import field, list_field, name_field, number_field, shown, text_field, whole_field
from data_prep.media import MediaFolder
from data_prep.outcome import BadRecordError
from data_prep.reading.inputs import InputFile
from data_prep.reading.item import Item
from data_prep.reading.json_array import read_json_array
from data_prep.source import Origin
from data_prep.subtitles import MadeSubtitles, moved
from longvid_train.console import argument
from longvid_train.data.manifest import Sample
from longvid_train.errors import UserError
from longvid_train.types import Subtitle

SPLITS = ("val", "test")
REPORTED = ("duration_group", "question_category", "topic_category", "level")
"""What the benchmark's tables are by."""

ORIGIN = Origin("longvideobench", "CC-BY-NC-SA-4.0; videos belong to their owners", "2024")
_CLOCK = re.compile(r"(\d+):([0-5]?\d):([0-5]?\d(?:\.\d+)?)")


@dataclass(frozen=True)
class LongVideoBench:
    """Questions with two to five options.

    Attributes:
        annotations: lvb_val.json or lvb_test_wo_gt.json.
        videos: where the videos are.
        split: name of the split; part of the rows' ids. Rows of ``test`` have no answer.
        subtitles: where the JSON files of the subtitles are; None leaves subtitles out.
        made: where the ``.srt`` files go.
    """

    annotations: InputFile
    videos: MediaFolder
    split: str
    subtitles: MediaFolder | None = None
    made: MadeSubtitles | None = None
    origin: Origin = ORIGIN

    def inputs(self) -> Sequence[InputFile]:
        """The annotations."""
        return (self.annotations,)

    def settings(self) -> Mapping[str, Any]:
        """What the rows depend on."""
        made = None if self.made is None else self.made.folder.prefix
        return {"videos": self.videos.prefix, "split": self.split, "subtitles": made}

    def read(self) -> Iterator[Item]:
        """All questions."""
        return read_json_array(self.annotations)

    def key(self, value: Any) -> str:
        """Split and the question's id, e.g. ``val/86CxyhFV9MI_0``."""
        return f"{self.split}/{text_field(value, 'id')}"

    def convert(self, value: Any, row_id: str) -> Sequence[Sample]:
        """One row; the answer is the letter of the right option."""
        options = list_field(value, "candidates")
        if not all(isinstance(option, str) and option.strip() for option in options):
            raise BadRecordError("a candidate is not text", shown(options))
        name = text_field(value, "video_path")
        reported = {at: name_field(value, at) for at in REPORTED}
        row = multiple_choice(
            row_id=row_id,
            video=self.videos.find_video(name),
            question=as_question(text_field(value, "question")),
            options=[option.strip() for option in options],
            correct=whole_field(value, "correct_choice") if self.split == "val" else None,
            meta={
                "question_id": text_field(value, "id"),
                **reported,
                "duration_s": number_field(value, "duration"),
                "split": self.split,
            },
            subtitles=self._spoken(value, name),
        )
        return [row]

    def _spoken(self, value: Any, video: str) -> str | None:
        if self.subtitles is None or self.made is None:
            return None
        path = self.subtitles.folder / self.subtitles.checked(text_field(value, "subtitle_path"))
        self.subtitles.find(text_field(value, "subtitle_path"))
        origin_s, duration_s = (number_field(value, at) for at in ("starting_timestamp_for_subtitles", "duration"))
        lines = read_lines(path, end_s=origin_s + duration_s)
        shown_lines = [moved(line, origin_s) for line in lines if line.end_s > origin_s]
        stem = PurePosixPath(self.videos.checked(video)).with_suffix("").as_posix()
        return self.made.write(stem, shown_lines)


def read_lines(path: Path, *, end_s: float) -> list[Subtitle]:
    """The subtitles of a film up to ``end_s``, in the order of their start; a line without an end lasts until then.

    Raises:
        BadRecordError: the file is broken.
    """
    try:
        lines = [_line(item.value, end_s) for item in read_json_array(InputFile(path))]
    except (UserError, BadRecordError) as error:
        raise BadRecordError("the subtitles are broken", f"{path}: {error}") from error
    kept = [line for line in lines if line.start_s < end_s]
    return sorted(kept, key=lambda line: line.start_s)


def _line(value: Any, end_s: float) -> Subtitle:
    if isinstance(value, Mapping) and "timestamp" in value:
        times = list_field(value, "timestamp")
        start, end, text = times[0], times[1] if len(times) > 1 else None, field(value, "text")
    else:
        start, end, text = _clock_s(field(value, "start")), _clock_s(field(value, "end")), field(value, "line")
    start_s, stop_s = _time_s(start), end_s if end is None else _time_s(end)
    if not isinstance(text, str):
        raise BadRecordError("a line is not text", shown(text))
    return Subtitle(start_s, min(max(start_s, stop_s), end_s), text)


def _clock_s(value: Any) -> float:
    match = _CLOCK.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise BadRecordError("a time is not of the form 00:00:01.000", shown(value))
    hours, minutes, seconds = match.groups()
    return (int(hours) * 60 + int(minutes)) * 60 + float(seconds)


def _time_s(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise BadRecordError("a time is not a number of seconds", shown(value))
    return float(value)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this source."""
    add = parser.add_argument
    add("--annotations", type=argument(InputFile.parse), required=True, metavar="JSON", help="e.g. lvb_val.json")
    add("--videos", type=Path, required=True, help="folder of the videos")
    add("--subtitles", type=Path, metavar="FOLDER", help="folder of the subtitles' JSON files")
    add("--srt", type=Path, metavar="FOLDER", help="where they go in the videos' time (NAME_srt beside OUT)")
    add("--split", choices=SPLITS, required=True, help="what the annotations are; test has no answers")


def make_source(arguments: argparse.Namespace) -> LongVideoBench:
    """The source that the options describe."""
    videos, subtitles, made = MediaFolder.open(arguments.videos, arguments.out, "video"), None, None
    if arguments.subtitles is not None:
        subtitles = MediaFolder.open(arguments.subtitles, arguments.out, "subtitles")
        made = MadeSubtitles.open(arguments.srt, arguments.out)
    return LongVideoBench(arguments.annotations, videos, arguments.split, subtitles, made)


if __name__ == "__main__":
    sys.exit(run_source("longvideobench"))

"""Stage 1 videos: WebVid clips with the captions they were sold under, asked for by an instruction of ours.

Layout (github.com/m-bain/webvid): results_2M_train.csv, or the parts that its download.py makes of it, with the columns
videoid, contentUrl, duration (PT00H00M15S), page_dir and name (the caption); videos are PAGE_DIR/VIDEOID.mp4. Many
clips can no longer be downloaded: allow for them with --skip-missing. LLaMA-VID takes 232K of the 2.5M: the clips it
found of the first five of fifty parts.

example:
  python -m data_prep.webvid --csv results_2M_train_50/0.csv results_2M_train_50/1.csv --videos data/webvid/videos \\
      --out data/webvid/manifest.jsonl --skip-missing all
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.answers import open_question
from data_prep.captions import caption_instruction
from data_prep.command_line import natural, run_source
from data_prep.fields import name_field, text_field
from data_prep.media import MediaFolder
from data_prep.outcome import BadRecordError, DroppedError
from data_prep.reading.inputs import InputFile
from data_prep.reading.item import Item
from data_prep.reading.table import read_table
from data_prep.source import Origin
from longvid_train.console import argument
from longvid_train.data.manifest import Sample

COLUMNS = ("videoid", "name", "page_dir", "duration")
_DURATION = re.compile(r"PT(\d+)H(\d+)M(\d+)S")

ORIGIN = Origin("webvid", "WebVid terms: non-commercial research; clips belong to their owners", "2.5M")


@dataclass(frozen=True)
class WebVid:
    """The captions of some CSV files.

    Attributes:
        tables: the CSV files.
        videos: where the clips are.
        seed: of the choice of instructions.
        max_duration_s: longer clips are dropped; None keeps all.
    """

    tables: tuple[InputFile, ...]
    videos: MediaFolder
    seed: int = 0
    max_duration_s: int | None = None
    origin: Origin = ORIGIN

    def inputs(self) -> Sequence[InputFile]:
        """The CSV files."""
        return self.tables

    def settings(self) -> Mapping[str, Any]:
        """What the rows depend on."""
        return {"videos": self.videos.prefix, "seed": self.seed, "max_duration_s": self.max_duration_s}

    def read(self) -> Iterator[Item]:
        """The rows of all tables."""
        for table in self.tables:
            yield from read_table(table, COLUMNS)

    def key(self, value: Any) -> str:
        """The clip's number."""
        return name_field(value, "videoid")

    def convert(self, value: Any, row_id: str) -> Sequence[Sample]:
        """One row: an instruction and the caption."""
        if not value["page_dir"].strip():
            raise DroppedError("the row has no page_dir, so its clip was never downloadable")
        caption = text_field(value, "name").strip()
        duration_s = _seconds(value["duration"])
        if self.max_duration_s is not None and duration_s > self.max_duration_s:
            raise DroppedError("the clip is longer than --max-duration", f"{duration_s} s")
        key = self.key(value)
        video = self.videos.find(f"{value['page_dir']}/{key}.mp4")
        meta = {"kind": "caption", "duration_s": duration_s}
        instruction = caption_instruction(key, self.seed)
        return [open_question(row_id=row_id, video=video, question=instruction, answer=caption, meta=meta)]


def _seconds(text: str) -> int:
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise BadRecordError("field 'duration' is not of the form PT00H00M15S", text[:40])
    hours, minutes, seconds = map(int, match.groups())
    return (hours * 60 + minutes) * 60 + seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this source."""
    add = parser.add_argument
    add("--csv", type=argument(InputFile.parse), nargs="+", required=True, metavar="CSV", help="WebVid's CSV files")
    add("--videos", type=Path, required=True, help="folder that holds PAGE_DIR/VIDEOID.mp4")
    add("--seed", type=argument(natural), default=0, help="of the choice of instructions (0)")
    add("--max-duration", type=argument(natural), metavar="S", help="drop clips that are longer (keep all)")


def make_source(arguments: argparse.Namespace) -> WebVid:
    """The source that the options describe."""
    videos = MediaFolder.open(arguments.videos, arguments.out, "video")
    return WebVid(tuple(arguments.csv), videos, arguments.seed, arguments.max_duration)


if __name__ == "__main__":
    sys.exit(run_source("webvid"))

"""Stage 2 videos: VideoInstruct100K, questions and answers about ActivityNet videos.

Layout (github.com/mbzuai-oryx/Video-ChatGPT): VideoInstruct100K.json, one array of {"q", "a", "video_id":
"v_k_ZXmr8pmrs"}; videos are v_ID.mp4, .mkv, .webm, ... in one folder. Each question is a row; the 98K of LLaMA-VID are
those whose video could be downloaded (--skip-missing).

example:
  python -m data_prep.video_chatgpt --annotations VideoInstruct100K.json --videos data/activitynet/videos \\
      --out data/activitynet/video_instruct.jsonl --skip-missing 3000
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.answers import open_question
from data_prep.command_line import run_source
from data_prep.fields import text_field
from data_prep.media import MediaFolder
from data_prep.reading.inputs import InputFile
from data_prep.reading.item import Item
from data_prep.reading.json_array import read_json_array
from data_prep.source import Origin
from longvid_train.console import argument
from longvid_train.data.manifest import Sample

ORIGIN = Origin("video_chatgpt", "CC-BY-SA-4.0; ActivityNet videos belong to their owners", "VideoInstruct100K")


@dataclass(frozen=True)
class VideoChatGPT:
    """Questions about videos.

    Attributes:
        annotations: VideoInstruct100K.json.
        videos: where the videos are.
    """

    annotations: InputFile
    videos: MediaFolder
    origin: Origin = ORIGIN

    def inputs(self) -> Sequence[InputFile]:
        """The annotation file."""
        return (self.annotations,)

    def settings(self) -> Mapping[str, Any]:
        """What the rows depend on."""
        return {"videos": self.videos.prefix}

    def read(self) -> Iterator[Item]:
        """All questions."""
        return read_json_array(self.annotations)

    def key(self, value: Any) -> str:
        """The video's name: all questions about a video are in one shard."""
        return text_field(value, "video_id")

    def convert(self, value: Any, row_id: str) -> Sequence[Sample]:
        """One row."""
        video = self.videos.find_video(self.key(value))
        question, answer = text_field(value, "q"), text_field(value, "a")
        return [open_question(row_id=row_id, video=video, question=question, answer=answer, meta={"kind": "open"})]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this source."""
    add = parser.add_argument
    add("--annotations", type=argument(InputFile.parse), required=True, metavar="JSON", help="VideoInstruct100K.json")
    add("--videos", type=Path, required=True, help="folder that holds v_ID.mp4, v_ID.mkv, ...")


def make_source(arguments: argparse.Namespace) -> VideoChatGPT:
    """The source that the options describe."""
    return VideoChatGPT(arguments.annotations, MediaFolder.open(arguments.videos, arguments.out, "video"))


if __name__ == "__main__":
    sys.exit(run_source("video_chatgpt"))

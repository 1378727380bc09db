"""Evaluation: MSRVTT-QA, open questions about 10,000 clips (test: 72,821 questions on 2,990 clips).

Layout (github.com/xudejing/video-question-answering): train_qa.json, val_qa.json, test_qa.json, arrays of {"answer",
"category_id", "id", "question", "video_id": 9770}; clips are video9770.mp4 in one folder (TrainValVideo, TestVideo).

example:
  python -m data_prep.msrvtt_qa --annotations MSRVTT-QA/test_qa.json --videos data/msrvtt/TestVideo \\
      --out data/msrvtt/test.jsonl
"""

import argparse
import sys
from pathlib import Path

from data_prep.command_line import run_source
from data_prep.media import MediaFolder
from data_prep.reading.inputs import InputFile
from data_prep.source import Origin
from data_prep.video_qa import SPLITS, VideoQA
from longvid_train.console import argument

ORIGIN = Origin("msrvtt_qa", "research use; clips belong to their owners", "Xu et al. 2017")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this source."""
    add = parser.add_argument
    add("--annotations", type=argument(InputFile.parse), required=True, metavar="JSON", help="e.g. test_qa.json")
    add("--videos", type=Path, required=True, help="folder of the clips")
    add("--split", choices=SPLITS, default="test", help="what the annotations are (test)")


def make_source(arguments: argparse.Namespace) -> VideoQA:
    """The source that the options describe."""
    videos = MediaFolder.open(arguments.videos, arguments.out, "video")
    return VideoQA(ORIGIN, arguments.annotations, videos, arguments.split, "video{}")


if __name__ == "__main__":
    sys.exit(run_source("msrvtt_qa"))

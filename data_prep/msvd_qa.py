"""Evaluation: MSVD-QA, open questions about 1,970 YouTube clips (test: 13,157 questions on 520 clips).

Layout (github.com/xudejing/video-question-answering): train_qa.json, val_qa.json, test_qa.json, arrays of {"answer",
"id", "question", "video_id": 1451}; clips are vid1451.avi, or YouTubeClips' names such as -4wsuPCjDBc_5_15.avi, which
youtube_mapping.txt ("-4wsuPCjDBc_5_15 vid1" a line) translates.

example:
  python -m data_prep.msvd_qa --annotations MSVD-QA/test_qa.json --videos data/msvd/YouTubeClips \\
      --youtube-mapping MSVD-QA/youtube_mapping.txt --out data/msvd/test.jsonl
"""

import argparse
import sys
from pathlib import Path

from data_prep.command_line import run_source
from data_prep.media import MediaFolder
from data_prep.reading.inputs import InputFile
from data_prep.reading.text import text_lines
from data_prep.source import Origin
from data_prep.video_qa import SPLITS, VideoQA
from longvid_train.console import argument
from longvid_train.errors import UserError

ORIGIN = Origin("msvd_qa", "research use; clips belong to their YouTube owners", "Xu et al. 2017")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this source."""
    add = parser.add_argument
    add("--annotations", type=argument(InputFile.parse), required=True, metavar="JSON", help="e.g. test_qa.json")
    add("--videos", type=Path, required=True, help="folder of the clips")
    add("--youtube-mapping", type=argument(InputFile.parse), metavar="TXT", help="where clips have YouTube's names")
    add("--split", choices=SPLITS, default="test", help="what the annotations are (test)")


def make_source(arguments: argparse.Namespace) -> VideoQA:
    """The source that the options describe."""
    mapping = arguments.youtube_mapping
    return VideoQA(
        origin=ORIGIN,
        annotations=arguments.annotations,
        videos=MediaFolder.open(arguments.videos, arguments.out, "video"),
        split=arguments.split,
        stem="vid{}",
        names={} if mapping is None else read_mapping(mapping),
        names_file=mapping,
    )


def read_mapping(file: InputFile) -> dict[str, str]:
    """``vidN -> name of the clip`` from lines ``name vidN``.

    Raises:
        UserError: a line is not of that form, or names a clip again.
    """
    names: dict[str, str] = {}
    for number, line in enumerate(text_lines(file), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or not words[1].startswith("vid"):
            raise UserError(f"{file.name}:{number}: '{line.strip()[:80]}' is not of the form 'CLIP vidN'")
        if words[1] in names:
            raise UserError(f"{file.name}:{number}: '{words[1]}' stands twice")
        names[words[1]] = words[0]
    return names


if __name__ == "__main__":
    sys.exit(run_source("msvd_qa"))

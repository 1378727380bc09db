"""Stage 2 images and text: LLaVA-1.5's mix of 665K conversations, whole or cut into pieces of --max-rounds questions.

Layout (huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K): llava_v1_5_mix665k.json, one array of {"id", "image",
"conversations": [{"from": "human" | "gpt", "value"}, ...]}; text-only rows (40K of ShareGPT) have no "image". Images
are below one folder: coco/train2017, gqa/images, ocr_vqa/images, textvqa/train_images, vg/VG_100K, vg/VG_100K_2.
LLaMA-VID's files are read too: llava_v1_5_mix665k_maxround_*.json, and *_with_video_chatgpt.json, whose rows with
"video" need --videos.

example:
  python -m data_prep.llava_instruct --annotations llava_v1_5_mix665k.json --images data/llava --max-rounds 6 \\
      --out data/llava/mix665k.jsonl --processes 8
"""

import argparse
import sys
from pathlib import Path

from data_prep.command_line import positive, run_source
from data_prep.llava import LlavaSource
from data_prep.media import MediaFolder
from data_prep.reading.inputs import InputFile
from data_prep.source import Origin
from longvid_train.console import argument

ORIGIN = Origin(
    "llava_instruct", "CC-BY-4.0 and the OpenAI terms of use; images keep their sources' licences", "v1_5_mix665k"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this source."""
    add = parser.add_argument
    add("--annotations", type=argument(InputFile.parse), nargs="+", required=True, metavar="JSON", help="the arrays")
    add("--images", type=Path, required=True, help="folder that holds coco, gqa, ocr_vqa, textvqa and vg")
    add("--videos", type=Path, help="folder of the rows that show a video (without it they are dropped)")
    add(
        "--max-rounds",
        type=argument(positive),
        metavar="N",
        help="cut conversations about an image or video into pieces of at most N questions (whole)",
    )
    add("--no-texts", action="store_true", help="drop the text-only rows")


def make_source(arguments: argparse.Namespace) -> LlavaSource:
    """The source that the options describe."""
    return LlavaSource(
        origin=ORIGIN,
        annotations=tuple(arguments.annotations),
        images=MediaFolder.open(arguments.images, arguments.out, "image"),
        videos=arguments.videos and MediaFolder.open(arguments.videos, arguments.out, "video"),
        texts=not arguments.no_texts,
        max_rounds=arguments.max_rounds,
    )


if __name__ == "__main__":
    sys.exit(run_source("llava_instruct"))

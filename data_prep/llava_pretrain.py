"""Stage 1 images: the 558K subset of LAION, CC and SBU with BLIP captions that LLaVA and LLaMA-VID align on.

Layout (huggingface.co/datasets/liuhaotian/LLaVA-Pretrain): blip_laion_cc_sbu_558k.json, one array of
{"id": "004539375", "image": "00453/004539375.jpg", "conversations": [{"from": "human", "value": "...\\n<image>"},
{"from": "gpt", "value": CAPTION}]}; images.zip unpacks to folders 00000 to 00659. LLaMA-VID's file
llava_558k_with_webvid.json is read too: its rows with "video": "PAGE_DIR/VIDEOID.mp4" need --videos.

example:
  python -m data_prep.unpack images.zip --into data/llava_pretrain/images
  python -m data_prep.llava_pretrain --annotations blip_laion_cc_sbu_558k.json --images data/llava_pretrain/images \\
      --out data/llava_pretrain/manifest.jsonl
"""

import argparse
import sys
from pathlib import Path

from data_prep.command_line import run_source
from data_prep.llava import LlavaSource
from data_prep.media import MediaFolder
from data_prep.reading.inputs import InputFile
from data_prep.source import Origin
from longvid_train.console import argument

ORIGIN = Origin(
    source="llava_pretrain",
    license="other: the terms of CC3M, LAION and SBU images and of BLIP captions",
    version="blip_laion_cc_sbu_558k",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this source."""
    parser.add_argument(
        "--annotations",
        type=argument(InputFile.parse),
        required=True,
        help="blip_laion_cc_sbu_558k.json, or ARCHIVE::MEMBER",
    )
    parser.add_argument("--images", type=Path, required=True, help="folder that holds 00000, 00001, ...")
    parser.add_argument(
        "--videos", type=Path, help="folder of the rows that show a video (without it they are dropped)"
    )


def make_source(arguments: argparse.Namespace) -> LlavaSource:
    """The source that the options describe."""
    images = MediaFolder.open(arguments.images, arguments.out, "image")
    videos = arguments.videos and MediaFolder.open(arguments.videos, arguments.out, "video")
    return LlavaSource(origin=ORIGIN, annotations=(arguments.annotations,), images=images, videos=videos)


if __name__ == "__main__":
    sys.exit(run_source("llava_pretrain"))

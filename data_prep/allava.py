"""Images with long answers of GPT-4V: ALLaVA-4V, of which the visual context window paper draws 10K instructions.

Layout (huggingface.co/datasets/FreedomIntelligence/ALLaVA-4V): allava_laion/ALLaVA-Instruct-LAION-4V.json,
allava_laion/ALLaVA-Caption-LAION-4V.json and the same for allava_vflan: arrays of {"id", "image":
"allava_laion/images/100277305.jpeg", "conversations"}; Evol-Instruct-GPT4-Turbo-143K.json has text only. The folder
given with --images is the one that holds allava_laion and allava_vflan.

example:
  python -m data_prep.allava --annotations data/allava_laion/ALLaVA-Instruct-LAION-4V.json --images data \\
      --out data/allava_instruct.jsonl
  python -m data_prep.sample data/allava_instruct.jsonl --rows 10000 --out data/allava_10k.jsonl
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

ORIGIN = Origin("allava", "Apache-2.0 and the OpenAI terms of use; images belong to their owners", "ALLaVA-4V")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this source."""
    add = parser.add_argument
    add("--annotations", type=argument(InputFile.parse), nargs="+", required=True, metavar="JSON", help="the arrays")
    add("--images", type=Path, required=True, help="folder that holds allava_laion and allava_vflan")


def make_source(arguments: argparse.Namespace) -> LlavaSource:
    """The source that the options describe."""
    images = MediaFolder.open(arguments.images, arguments.out, "image")
    return LlavaSource(origin=ORIGIN, annotations=tuple(arguments.annotations), images=images, id_fields=("id", "idx"))


if __name__ == "__main__":
    sys.exit(run_source("allava"))

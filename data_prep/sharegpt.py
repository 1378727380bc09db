"""Stage 2 text: ShareGPT conversations.

Layout (huggingface.co/datasets/anon8231489123/ShareGPT_Vicuna_unfiltered): ShareGPT_V3_unfiltered_cleaned_split.json,
one array of {"id": "QWJhYvA_0", "conversations": [{"from": "human" | "gpt" | ..., "value"}, ...]}. Pieces of longer
conversations may start with an answer or end with a question: such turns are left out, and the row's meta says how
many. A system message goes to the row's meta too.

example:
  python -m data_prep.sharegpt --annotations ShareGPT_V3_unfiltered_cleaned_split.json --out data/sharegpt.jsonl \\
      --skip-bad 20000
  python -m data_prep.sample data/sharegpt.jsonl --rows 40000 --out data/sharegpt_40k.jsonl
"""

import argparse
import sys

from data_prep.command_line import run_source
from data_prep.llava import LlavaSource
from data_prep.reading.inputs import InputFile
from data_prep.source import Origin
from longvid_train.console import argument

ORIGIN = Origin("sharegpt", "Apache-2.0 and the OpenAI terms of use", "V3_unfiltered_cleaned_split")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this source."""
    add = parser.add_argument
    add("--annotations", type=argument(InputFile.parse), nargs="+", required=True, metavar="JSON", help="the arrays")


def make_source(arguments: argparse.Namespace) -> LlavaSource:
    """The source that the options describe."""
    return LlavaSource(origin=ORIGIN, annotations=tuple(arguments.annotations))


if __name__ == "__main__":
    sys.exit(run_source("sharegpt"))

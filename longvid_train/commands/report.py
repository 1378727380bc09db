"""Write one self-contained HTML page about finished runs, in the order they are named.

examples:
  longvid report quickstart/stage1 quickstart/stage2 quickstart/stage3 --out quickstart/report.html
  longvid report runs/a --out runs/a.html --samples 4 --title "A shorter stage 2" --json
  longvid report runs/a --out runs/a.html --asked answer.json --pictures docs/pictures

Each RUN is a folder that longvid fit wrote with answers.enabled: true. The page has the loss curves, the held-out
scores by kind of question before and after each run with bootstrap intervals, sample questions with the frames shown,
tokens, memory, time and the commands to repeat it. --json prints the numbers as one JSON object.
"""

import argparse
import json
from pathlib import Path

from longvid_train.errors import UserError
from longvid_train.evaluation.asked import read_asked
from longvid_train.evaluation.charts import scores_png
from longvid_train.evaluation.page import StagePart, render_page
from longvid_train.evaluation.pictures import best_sample, sample_png
from longvid_train.evaluation.reading import read_run
from longvid_train.evaluation.samples import read_samples
from longvid_train.evaluation.summary import as_json, summarise
from longvid_train.files import atomic_path, write_text

SCORES_PICTURE = "scores.png"
SAMPLE_PICTURE = "sample.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    add("runs", metavar="RUN", nargs="+", type=Path, help="run folder written by longvid fit")
    add("--out", type=Path, required=True, metavar="HTML", help="the page to write (replaced if it exists)")
    add("--title", default="LLaMA-VID training report", help="heading of the page")
    add("--samples", type=int, default=12, metavar="N", help="sample questions of each run, 0 for none (12)")
    add("--asked", type=Path, nargs="+", default=[], metavar="JSON", help="outputs of longvid ask --json to show")
    add("--pictures", type=Path, metavar="DIR", help=f"also write {SCORES_PICTURE} and {SAMPLE_PICTURE} there")
    add("--json", action="store_true", help="print one JSON object on stdout")


def run(arguments: argparse.Namespace) -> int:
    """Read the runs, write the page and print where it is."""
    if arguments.samples < 0:
        raise UserError(f"--samples is {arguments.samples}; it must be 0 (none) or a count")
    if arguments.out.is_dir():
        raise UserError(f"{arguments.out}: --out must be an HTML file, and this is a folder")
    parts = read_parts(arguments.runs, arguments.samples)
    asked = [read_asked(path) for path in arguments.asked]
    write_text(arguments.out, render_page(arguments.title, parts, asked))
    pictures = write_pictures(parts, arguments.pictures) if arguments.pictures else []
    if arguments.json:
        stages = [as_json(part.summary) for part in parts]
        print(json.dumps({"out": str(arguments.out), "pictures": [str(path) for path in pictures], "stages": stages}))
    else:
        print("\n".join(str(path) for path in (arguments.out, *pictures)))
    return 0


def read_parts(folders: list[Path], samples: int) -> list[StagePart]:
    """Read every run before any video is decoded, so that an unfinished run is told at once.

    Raises:
        UserError: a run is missing, unfinished or broken.
    """
    runs = [read_run(folder) for folder in folders]
    return [StagePart(run=run, summary=summarise(run), samples=read_samples(run, samples)) for run in runs]


def write_pictures(parts: list[StagePart], folder: Path) -> list[Path]:
    """Write the chart of scores, and one sample of the last run that has one with frames; return their paths."""
    written = [_write_bytes(folder / SCORES_PICTURE, scores_png([part.summary for part in parts]))]
    found = [best_sample(part.samples) for part in reversed(parts)]
    sample = next((sample for sample in found if sample is not None), None)
    if sample is not None:
        written.append(_write_bytes(folder / SAMPLE_PICTURE, sample_png(sample)))
    return written


def _write_bytes(path: Path, content: bytes) -> Path:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path

"""Check manifests: rows, files, decoding, durations, token lengths, repeated rows, leaks between splits.

Several manifests are taken as splits that must not share media or questions. The exit status is 1 when something is
wrong. Memory stays bounded for any number of rows: what must be compared is kept in the temporary folder.

examples:
  python -m data_prep.check data/train.jsonl --html overview.html
  python -m data_prep.check data/train.jsonl data/val.jsonl --decode full --processes 8
  python -m data_prep.check data/train.jsonl --config configs/llama_vid/nano/stage2.yaml --json
  python -m data_prep.check data/webvid.jsonl --no-files --ignore same_conversation
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from data_prep.checking.findings import KINDS, NOTICES, Findings
from data_prep.checking.lengths import LengthFacts, LengthSettings, measure_chunk, measurer_of
from data_prep.checking.media_files import WINDOW_SLACK_S, Decoding, FileFacts, check_file, content
from data_prep.checking.media_table import MediaTable
from data_prep.checking.overview import ManifestSummary, MediaSummary, page
from data_prep.checking.repeated_rows import RepeatedRows
from data_prep.checking.rows import chosen, chunks, read_chunk, two_digits
from data_prep.checking.workers import in_order
from data_prep.command_line import positive, run_tool
from longvid_train.console import argument
from longvid_train.data.manifest import ManifestRules
from longvid_train.errors import UserError, nearest
from longvid_train.files import write_text
from longvid_train.video import DecodeLimits

_SHOWN = 5
_TIMEOUT_S = 120.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("manifests", nargs="+", metavar="MANIFEST", help="manifests, each a split of its own")
    add("--no-files", action="store_true", help="look at the rows only, not at media and subtitle files")
    add(
        "--decode",
        type=argument(Decoding.parse),
        default=Decoding(),
        metavar="none|sampled:K|full",
        help="frames of each video that are decoded (sampled:3); images are decoded whole unless it is none",
    )
    add("--no-isolate", action="store_true", help="decode in this process: faster, for files you trust")
    add("--timeout", type=float, default=_TIMEOUT_S, metavar="S", help=f"seconds a file may take ({_TIMEOUT_S:g})")
    add("--config", action="append", default=[], metavar="YAML", help="a config of longvid fit: check token lengths")
    add("--processor", metavar="FOLDER", help="the model's folder, instead of the config's model.model")
    add("--no-answer", action="store_true", help="allow rows whose last turn is a question")
    add("--allow-outside", action="store_true", help="allow paths that leave the manifest's folder by '..'")
    add("--ignore", type=argument(_kinds), default=(), metavar="KIND,...", help=f"of {', '.join(KINDS)}")
    add("--processes", type=argument(positive), default=1, metavar="P", help="processes that parse and decode (1)")
    add("--html", type=Path, metavar="FILE", help="write the overview")
    add("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Check and report."""
    repeated = [path for path, times in Counter(map(_same_file, arguments.manifests)).items() if times > 1]
    if repeated:
        raise UserError(f"{repeated[0]} is given twice; a manifest cannot be two splits")
    if arguments.processor is not None and not arguments.config:
        raise UserError("--processor has no effect without --config; name the config whose lengths are wanted")
    with tempfile.TemporaryDirectory() as scratch:
        check = Check(
            arguments.manifests,
            rules=ManifestRules(require_answer=not arguments.no_answer, allow_outside=arguments.allow_outside),
            decoding=replace(arguments.decode, isolated=not arguments.no_isolate),
            limits=DecodeLimits(timeout_s=arguments.timeout),
            files=not arguments.no_files,
            lengths=_length_settings(arguments, Path(scratch)),
            processes=arguments.processes,
            findings=Findings(arguments.ignore),
        )
        check.run()
    if arguments.html is not None:
        write_text(arguments.html, check.page(_settings_in_words(arguments)))
    print(json.dumps(check.as_json(), ensure_ascii=True)) if arguments.json else _print_report(check)
    return 1 if check.findings.failed else 0


@dataclass(frozen=True)
class _Step:
    """A line of progress."""

    progress: Progress
    description: str
    total: float | None = None

    def __enter__(self) -> "_Step":
        object.__setattr__(self, "task", self.progress.add_task(self.description, total=self.total))
        return self

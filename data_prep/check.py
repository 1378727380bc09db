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
import os
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from data_prep.checking.findings import KINDS, LISTED, NOTICES, Findings
from data_prep.checking.lengths import LengthSettings
from data_prep.checking.media_files import Decoding
from data_prep.checking.overview import page
from data_prep.checking.pipeline import Checked, CheckOptions, check
from data_prep.command_line import positive, run_tool
from longvid_train.console import argument
from longvid_train.data.manifest import ManifestRules
from longvid_train.errors import UserError, nearest
from longvid_train.files import write_text
from longvid_train.video import DecodeLimits

_SHOWN = 5
_TIMEOUT_S = 120.0
_MEANINGS = {**KINDS, **NOTICES}


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
    repeated = [path for path, times in Counter(map(os.path.abspath, arguments.manifests)).items() if times > 1]
    if repeated:
        raise UserError(f"{repeated[0]} is given twice; a manifest cannot be two splits")
    if arguments.processor is not None and not arguments.config:
        raise UserError("--processor has no effect without --config; name the config whose lengths are wanted")
    with tempfile.TemporaryDirectory() as scratch, _progress() as progress:
        options = CheckOptions(
            rules=ManifestRules(
                require_answer=not arguments.no_answer,
                check_files=not arguments.no_files,
                allow_outside=arguments.allow_outside,
            ),
            decoding=replace(arguments.decode, isolated=not arguments.no_isolate),
            limits=DecodeLimits(timeout_s=arguments.timeout),
            lengths=_length_settings(arguments, Path(scratch)),
            processes=arguments.processes,
        )
        checked = check(arguments.manifests, options, Findings(arguments.ignore), progress.track)
    if arguments.html is not None:
        write_text(arguments.html, page(checked, options, _in_words(arguments)))
    if arguments.json:
        print(json.dumps(checked.as_json(), ensure_ascii=True))
    else:
        _print_report(checked)
    return 1 if checked.findings.failed else 0


def _length_settings(arguments: argparse.Namespace, scratch: Path) -> LengthSettings | None:
    if not arguments.config:
        return None
    return LengthSettings(
        configs=tuple(arguments.config),
        processor=arguments.processor,
        isolated=not arguments.no_isolate,
        probe_cache=str(scratch / "frame_counts.sqlite"),
    )


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(text.split(","))
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"'{kind}' is no kind of finding{nearest(kind, list(KINDS))}")
    return kinds


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _in_words(arguments: argparse.Namespace) -> str:
    if arguments.no_files:
        files = "files were not looked at"
    else:
        frames = arguments.decode.frames
        decoded = "nothing" if frames == 0 else "every frame" if frames is None else f"{frames} frames of each video"
        files = f"every file was looked at, {decoded} decoded"
    lengths = f"; token lengths under {', '.join(arguments.config)}" if arguments.config else ""
    return f"Rows were read, {files}{lengths}"


def _print_report(checked: Checked) -> None:
    console = Console(soft_wrap=True)
    for summary in checked.summaries:
        mix = ", ".join(f"{rows} {kind}" for kind, rows in summary.tally.modalities.most_common())
        fitting = "" if summary.lengths is None else f"; longest {summary.lengths.longest} tokens"
        _print(console, f"{summary.path}: {summary.tally.rows} rows ({mix or 'none'}){fitting}")
    media = checked.media
    _print(
        console,
        f"{media.media} media files, {media.subtitles} subtitle files; {media.opened} videos opened, "
        f"{media.duration_s / 3600:.2f} hours",
    )
    findings = checked.findings
    for kind in findings.kinds:
        verdict = "" if findings.fails(kind) else " (does not fail the check)"
        _print(console, f"\n{findings.counts[kind]} x {kind}: {_MEANINGS[kind]}{verdict}")
        for finding in findings.listed[kind][:_SHOWN]:
            _print(console, f"  {finding}")
        if findings.counts[kind] > _SHOWN:
            _print(console, f"  and {findings.counts[kind] - _SHOWN} more (--json lists {LISTED})")
    _print(console, "\nsomething is wrong" if findings.failed else "\nnothing is wrong")


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False)


if __name__ == "__main__":
    sys.exit(run_tool("check"))

"""The command line that every source shares: ``python -m data_prep.SOURCE [ARGUMENTS]``."""

import argparse
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from data_prep.counts import KINDS, Counts
from data_prep.preparation import LEFT_OUT_SUFFIX, Prepared, RunOptions, prepare
from data_prep.probing import Probed
from data_prep.receipt import beside, receipt_path
from data_prep.shard import Shard
from longvid_train.console import OneLineParser, argument, exit_status
from longvid_train.errors import UserError

_REASONS_SHOWN = 8


def run_source(name: str, words: Sequence[str] | None = None) -> int:
    """Run the source module ``data_prep.NAME`` and return the exit status.

    The module has a docstring with examples, ``add_arguments(parser)`` and ``make_source(arguments) -> Source``.
    """
    module = importlib.import_module(f"data_prep.{name}")
    parser = _parser(f"data_prep.{name}", module.__doc__)
    module.add_arguments(parser)
    _add_common_arguments(parser)
    return exit_status(f"data_prep.{name}", words, lambda rest: _run(module, parser, rest))


def run_tool(name: str, words: Sequence[str] | None = None) -> int:
    """Run a tool that is no source: its module has ``add_arguments(parser)`` and ``run(arguments) -> exit status``."""
    module = importlib.import_module(f"data_prep.{name}")
    parser = _parser(f"data_prep.{name}", module.__doc__)
    module.add_arguments(parser)
    return exit_status(f"data_prep.{name}", words, lambda rest: int(module.run(parser.parse_args(rest))))


def _parser(name: str, description: str | None) -> OneLineParser:
    return OneLineParser(
        prog=f"python -m {name}",
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_common_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, help="the manifest to write, NAME.jsonl; put it at or above the media")
    add(
        "--shard",
        type=argument(Shard.parse),
        default=Shard(),
        metavar="I/N",
        help="prepare part I of N (data_prep.merge joins)",
    )
    add("--processes", type=argument(positive), default=1, metavar="P", help="processes that convert records (1)")
    add(
        "--skip-bad",
        type=argument(natural),
        default=0,
        metavar="LIMIT",
        help="leave out at most so many broken records (0)",
    )
    add(
        "--skip-missing",
        type=argument(_limit_or_all),
        default=0,
        metavar="LIMIT|all",
        help="leave out at most so many records whose media are not there (0)",
    )
    add("--probe", action="store_true", help="open every image and video; one that cannot be read is a broken record")
    add("--overwrite", action="store_true", help="replace a manifest that was made with other settings")
    add("--json", action="store_true", help="print the summary as one JSON object")


def positive(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"'{text}' must be a whole number, 1 or more")
    return int(text)


def natural(text: str) -> int:
    """A whole number of 0 or more, for argparse."""
    if not text.isdecimal():
        raise UserError(f"'{text}' must be a whole number, 0 or more")
    return int(text)


def _limit_or_all(text: str) -> int | None:
    return None if text == "all" else natural(text)


def _run(module: ModuleType, parser: argparse.ArgumentParser, words: Sequence[str]) -> int:
    arguments = parser.parse_args(words)
    options = RunOptions(
        out=arguments.out,
        shard=arguments.shard,
        processes=arguments.processes,
        skip_bad=arguments.skip_bad,
        skip_missing=arguments.skip_missing,
        overwrite=arguments.overwrite,
    )
    source = module.make_source(arguments)
    if arguments.probe:
        source = Probed(source, arguments.out.absolute().parent)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading the inputs", total=None)
        prepared = prepare(source, options, on_progress=lambda counts: progress.update(task, description=_line(counts)))
    print(json.dumps(_summary(prepared), ensure_ascii=True) if arguments.json else _report(prepared))
    return 0


def _line(counts: Counts) -> str:
    left_out = ", ".join(f"{counts.total(kind)} {kind}" for kind in KINDS)
    return f"{counts.read} records read, {counts.kept} kept, {left_out}"


def _summary(prepared: Prepared) -> dict[str, Any]:
    return {
        "manifest": str(prepared.manifest),
        "receipt": str(receipt_path(prepared.manifest)),
        "left_out": str(beside(prepared.manifest, LEFT_OUT_SUFFIX)),
        "shard": prepared.receipt.order["shard"],
        "resumed": prepared.resumed,
        "found_finished": prepared.found_finished,
        **prepared.receipt.counts.as_json(),
    }


def _report(prepared: Prepared) -> str:
    counts = prepared.receipt.counts
    state = " (was finished already)" if prepared.found_finished else " (taken up again)" if prepared.resumed else ""
    lines = [f"{prepared.manifest}: {counts.rows} rows of {counts.kept} records, {counts.read} read{state}"]
    for kind in KINDS:
        reasons = counts.left_out[kind].most_common()
        lines += [f"  {kind} {count} x {reason}" for reason, count in reasons[:_REASONS_SHOWN]]
        if len(reasons) > _REASONS_SHOWN:
            lines.append(f"  {kind}: {len(reasons) - _REASONS_SHOWN} further reasons")
    if counts.read > counts.kept:
        lines.append(f"  each is named in {beside(prepared.manifest, LEFT_OUT_SUFFIX)}")
    return "\n".join(lines)

"""Run a grid of runs offline: every cell with every seed, one table with mean and spread, wandb runs to sync later.

examples:
  longvid ablate configs/ablations/smoke.yaml --out runs/ablations/smoke
  longvid ablate configs/ablations/kv_bits.yaml --out runs/ablations/kv_bits --dry-run
  longvid ablate configs/ablations/llama_vid_token_types.yaml --out runs/ablations/token_types --seeds 5 --processes 2
  longvid ablate configs/ablations/llama_vid_token_types.yaml --out runs/ablations/token_types --only tokens=both seed=0
  wandb sync runs/ablations/smoke/wandb/offline-run-*

The config is a wandb sweep file of method grid ('wandb sweep CONFIG' takes it as it is) whose parameter 'recipe' names
what a cell runs. --out gets results.json, table.md, results.png, cells/CELL/seedN with all that is known of a run, and
wandb/. An interrupted ablation goes on when the command is given again, in the middle of a training too. A run that
fails is named, the others go on, and the status is 1.
"""

import argparse
import io
import json
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from longvid_train.console import EXIT_FAILURE, say
from longvid_train.errors import UserError

if TYPE_CHECKING:
    from longvid_train.ablation.making import Facts
    from longvid_train.ablation.plan import Run
    from longvid_train.ablation.recipe import Recipe
    from longvid_train.ablation.scores import Scored
    from longvid_train.ablation.sweep import Sweep

RESULTS_FILE, TABLE_FILE, PICTURE_FILE = "results.json", "table.md", "results.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``longvid ablate``."""
    add = parser.add_argument
    add("config", type=Path, metavar="CONFIG", help="sweep file, e.g. configs/ablations/smoke.yaml")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the ablation")
    add("--seeds", type=int, metavar="N", help="seeds 0 to N - 1 in place of the config's")
    add("--only", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="cells or seeds with this value")
    add("--processes", type=int, default=1, metavar="N", help="runs at once (1)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="check everything and list the runs; write nothing")
    what.add_argument("--table-only", action="store_true", help="only write results, table and picture of what is done")
    add("--json", action="store_true", help="print results.json on stdout in place of the table")


def run(arguments: argparse.Namespace) -> int:
    """Run what is missing, and write the table."""
    if arguments.processes < 1:
        raise UserError(f"--processes is {arguments.processes}; it must be at least 1")
    from longvid_train.ablation.plan import plan_runs
    from longvid_train.ablation.recipe import read_recipe
    from longvid_train.ablation.records import check_grid, check_results, grid_values
    from longvid_train.ablation.sweep import parse_only

    sweep, selection = _sweep(arguments), parse_only(arguments.only)
    recipe = read_recipe(sweep)
    chosen, seeds = selection.cells(sweep), selection.seeds(sweep)
    every = plan_runs(sweep, recipe, sweep.cells(), sweep.seeds)
    runs = [one for one in every if one.cell in chosen and one.seed in seeds]
    out: Path = arguments.out.absolute()
    check_grid(out, grid_values(sweep, recipe))
    check_results(out, every)
    if arguments.dry_run:
        return _dry_run(arguments, out, sweep, runs)
    if arguments.table_only:
        return _report(arguments, out, sweep, recipe, every)
    failed = _run_missing(arguments, out, sweep, recipe, runs)
    status = _report(arguments, out, sweep, recipe, every)
    for line in failed:
        say(f"failed: {line}")
    return EXIT_FAILURE if failed else status


def _sweep(arguments: argparse.Namespace) -> "Sweep":
    from longvid_train.ablation.sweep import read_sweep

    sweep = read_sweep(arguments.config)
    if arguments.seeds is None:
        return sweep
    if arguments.seeds < 1:
        raise UserError(f"--seeds is {arguments.seeds}; it must be at least 1")
    return replace(sweep, seeds=tuple(range(arguments.seeds)))


def _dry_run(arguments: argparse.Namespace, out: Path, sweep: "Sweep", runs: "list[Run]") -> int:
    from longvid_train.ablation.making import is_done
    from longvid_train.ablation.plan import check_runs
    from longvid_train.ablation.records import has_result, steps_done

    check_runs(runs, out, str(sweep.file), parse_words)
    if arguments.json:
        print(json.dumps({"runs": [{**one.cell, "seed": one.seed, "done": has_result(out, one)} for one in runs]}))
        return 0
    for one in runs:
        steps = [f"{step.name}{'*' if is_done(step.folder(out)) else ''}" for step in one.result.in_order()]
        print(f"{one.title}: {'done' if has_result(out, one) else ' > '.join(steps)}")
    done, steps_in_all = steps_done(out, runs)
    finished = sum(has_result(out, one) for one in runs)
    print(f"{len(runs)} runs, {finished} done; {steps_in_all} different steps, {done} done (*)")
    return 0


def _run_missing(
    arguments: argparse.Namespace, out: Path, sweep: "Sweep", recipe: "Recipe", runs: "list[Run]"
) -> list[str]:
    """Run what has no result yet; the names of the runs that failed, with the reasons."""
    from longvid_train.ablation.launching import Launcher
    from longvid_train.ablation.locks import folder_lock
    from longvid_train.ablation.making import Maker
    from longvid_train.ablation.plan import check_runs
    from longvid_train.ablation.records import GRID_FILE, grid_values, has_result, write_failure, write_run
    from longvid_train.ablation.running import Failed, Progress, run_all
    from longvid_train.ablation.tracking import log_run, under_agent
    from longvid_train.files import write_json

    failed: list[str] = []
    missing = [one for one in runs if not has_result(out, one)]
    check_runs(missing, out, str(sweep.file), parse_words)
    with folder_lock(out, shared=under_agent(os.environ)), _sigterm_stops():
        write_json(out / GRID_FILE, grid_values(sweep, recipe))
        facts = _facts()
        progress = Progress(len(runs), len(runs) - len(missing), say)

        def ended(one: "Run", outcome: "tuple[Scored, ...] | Failed") -> None:
            if isinstance(outcome, Failed):
                write_failure(out, one, outcome.reason)
                failed.append(f"{one.title}: {outcome.reason}")
                progress.ended(one.title, f"failed: {outcome.reason}")
                return
            write_run(out, one, outcome, sweep, facts)
            progress.ended(one.title, f"score {sum(q.score for q in outcome) / len(outcome):.3f}")

        run_all(missing, Maker(out, facts, say, Launcher()), processes=arguments.processes, on_end=ended)
        for one in runs:
            if has_result(out, one):
                log_run(out, one, sweep)
    return failed


def _report(arguments: argparse.Namespace, out: Path, sweep: "Sweep", recipe: "Recipe", every: "list[Run]") -> int:
    """Write results, table and picture of all runs that are done, and print."""
    from longvid_train.ablation.chart import results_png
    from longvid_train.ablation.table import read_results, table_markdown, table_values
    from longvid_train.files import atomic_path, write_json, write_text

    results = read_results(out, every)
    if not any(cell.seeds for cell in results):
        if arguments.table_only:
            raise UserError(f"{out}: no run of {sweep.file} is done; leave --table-only out")
        return EXIT_FAILURE
    values, table = table_values(sweep, recipe, results), table_markdown(sweep, results)
    write_json(out / RESULTS_FILE, values)
    write_text(out / TABLE_FILE, table + "\n")
    with atomic_path(out / PICTURE_FILE) as temporary:
        temporary.write_bytes(results_png(sweep, results))
    print(json.dumps(values) if arguments.json else table)
    return 0


def _facts() -> "Facts":
    from longvid_train.ablation.making import Facts
    from longvid_train.training.record import git_commit, hardware, package_versions

    return Facts(git_commit=git_commit(Path.cwd()), versions=package_versions(), hardware=hardware())


def parse_words(words: Sequence[str]) -> None:
    """Read the words of a command with its own parser, and run nothing.

    Raises:
        UserError: an unknown key, or a value that cannot be used.
    """
    command, *rest = words
    if command == "init":
        from longvid_train.commands import init
        from longvid_train.console import OneLineParser

        parser = OneLineParser(prog="longvid init", allow_abbrev=False)
        init.add_arguments(parser)
        parser.parse_args(rest)
    elif command == "calibrate":
        from longvid_train.training.calibration.parsing import calibration_parser, mistake_in_words

        try:
            calibration_parser().parse_args(rest)
        except argparse.ArgumentError as error:
            raise UserError(mistake_in_words(str(error))) from error
    else:
        from longvid_train.commands import lightning

        with redirect_stdout(io.StringIO()):
            lightning.run(command, [*rest, "--print_config"])


@contextmanager
def _sigterm_stops() -> Iterator[None]:
    """SIGTERM ends the ablation as Ctrl-C does: its commands save what they did."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)

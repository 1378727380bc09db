"""Render synthetic episodes to H.264 videos and images, with questions whose answers are known.

examples:
  longvid world --out world --split train=200 --split val=40 --duration 4-8 --style caption --images train=200
  longvid world --out world --split val=40 --kinds needle,order,subtitle --subtitles --duration 60 --workers 2
  longvid world --out world --config world.yaml

A config describes several sets at once:
  seed: 0
  defaults: {fps: 4, size_px: 112}
  sets:
    - {name: stage1, videos: {train: 200, val: 40}, images: {train: 200, val: 40}, duration_s: [4, 8], style: caption}
    - {name: stage2, videos: {train: 200, val: 40}, duration_s: [8, 12], kinds: [needle, order, count, detail]}

Running the same command again renders only what is missing.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from longvid_train.errors import UserError
from longvid_train.world.build import BuildSummary, build_world
from longvid_train.world.questions import QUESTION_KINDS
from longvid_train.world.settings import BuildSettings, parse_set, parse_world

_SET_OPTIONS = {
    "split": "videos",
    "images": "images",
    "texts": "texts",
    "duration": "duration_s",
    "fps": "fps",
    "size": "size_px",
    "style": "style",
    "kinds": "kinds",
    "questions_per_episode": "questions_per_episode",
    "multi_turn": "multi_turn",
    "subtitles": "subtitles",
    "overlap": "overlap",
    "most_objects": "most_objects",
    "gop": "gop",
    "crf": "crf",
    "image_format": "image_format",
}
"""Command-line option -> setting of a set. An option not given keeps the setting's default."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``longvid world``."""
    absent = argparse.SUPPRESS
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of the world")
    add("--config", type=Path, help="YAML file that describes one or several sets (then no set options here)")
    add("--split", action="append", metavar="SPLIT=COUNT", default=absent, help="videos of a split, e.g. train=200")
    add("--images", action="append", metavar="SPLIT=COUNT", default=absent, help="still images of further episodes")
    add("--texts", action="append", metavar="SPLIT=COUNT", default=absent, help="text-only rows of further episodes")
    add("--duration", default=absent, metavar="S|S-S", help="seconds, or a range drawn from per episode (8)")
    add("--fps", default=absent, help="frames a second, e.g. 4 or 30000/1001 (4)")
    add("--size", type=int, default=absent, metavar="PX", help="width and height (112)")
    add("--style", default=absent, help="caption or qa (qa)")
    add("--kinds", default=absent, help=f"question kinds, from {','.join(QUESTION_KINDS)} (needle,order,count,detail)")
    add("--questions-per-episode", type=int, default=absent, metavar="N", help="at most N questions an episode (3)")
    add("--multi-turn", action="store_true", default=absent, help="one conversation an episode, not one row a question")
    add("--subtitles", action="store_true", default=absent, help="speak code words; write .srt files")
    add("--overlap", type=float, default=absent, help="chance that the next object enters while one is there")
    add("--most-objects", type=int, default=absent, metavar="N", help="objects an episode, about, at most (30)")
    add("--gop", type=int, default=absent, help="most frames between keyframes (16)")
    add("--crf", type=int, default=absent, help="x264 quality, smaller is better (18)")
    add("--image-format", default=absent, help="png or jpg (png)")
    add("--seed", type=int, default=None, help="seed of everything (0, or the config's)")
    add("--workers", type=int, default=1, help="processes that render (1)")
    add("--overwrite", action="store_true", help="replace another world in the folder")
    add("--json", action="store_true", help="print a summary as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Build the world and print where it is."""
    settings = _settings(arguments)
    console = Console(stderr=True)
    columns = (TextColumn("rendering"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("rendering", total=None)
        summary = build_world(
            settings,
            arguments.out,
            workers=arguments.workers,
            overwrite=arguments.overwrite,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    print(json.dumps(asdict(summary)) if arguments.json else _report(summary), file=sys.stdout)
    return 0


def _settings(arguments: argparse.Namespace) -> BuildSettings:
    given = {option: getattr(arguments, option) for option in _SET_OPTIONS if hasattr(arguments, option)}
    if arguments.config is None:
        values: dict[str, Any] = {_SET_OPTIONS[option]: value for option, value in given.items()}
        for use in ("videos", "images", "texts"):
            if use in values:
                values[use] = _counts(values[use], use)
        return BuildSettings(sets=(parse_set(values, where="options"),), seed=arguments.seed or 0)
    if given:
        names = ", ".join("--" + option.replace("_", "-") for option in given)
        raise UserError(f"{names} cannot be combined with --config; put the setting into {arguments.config}")
    value = _read_yaml(arguments.config)
    if arguments.seed is not None and isinstance(value, dict):
        value = {**value, "seed": arguments.seed}
    return parse_world(value, where=str(arguments.config))


def _counts(words: list[str], use: str) -> dict[str, int]:
    option = "--split" if use == "videos" else f"--{use}"
    counts = {}
    for word in words:
        split, equals, count = word.partition("=")
        if not equals or not count.isdecimal():
            raise UserError(f"{option} {word} must be SPLIT=COUNT, e.g. {option} train=200")
        counts[split] = int(count)
    return counts


def _read_yaml(path: Path) -> object:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name a YAML file that describes the world") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from None


def _report(summary: BuildSummary) -> str:
    lines = [f"{summary.out}: {summary.rendered} files rendered, {summary.kept} kept, {summary.seconds:.1f} s"]
    for folder, counts in summary.counts.items():
        lines.append(f"  {folder}/manifest.jsonl: " + ", ".join(f"{count} {what}" for what, count in counts.items()))
    return "\n".join(lines)

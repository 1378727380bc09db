"""Check a folder of tower features (the --run_dir of longvid predict): every checksum of every shard, and the index.

The exit status is 1 when a shard is damaged or missing, or when the index does not list what the shards hold. A damaged
shard is named; delete it and run the same longvid predict again, which makes only what is missing.

examples:
  python -m data_prep.check_features quickstart/features
  python -m data_prep.check_features features --processes 8 --json
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import Progress

from data_prep.checking.workers import in_order
from data_prep.command_line import positive, run_tool
from longvid_train.console import argument
from longvid_train.errors import UserError

_FRAMES_AT_ONCE = 64


class ShardFacts(NamedTuple):
    """One shard, read from the first byte to the last.

    Attributes:
        name: of the file.
        file_bytes: of it.
        frames: whose checksums were compared.
        frame_bytes: of their features, together.
        problem: what is wrong; empty if nothing is.
    """

    name: str
    file_bytes: int
    frames: int = 0
    frame_bytes: int = 0
    problem: str = ""


@dataclass
class FolderFacts:
    """A folder of features.

    Attributes:
        folder: its path.
        dtype: as stored.
        patches: as stored.
        clips: whole ones, by the index.
        unfinished: clips of which frames are missing.
        shards: files.
        file_bytes: of all shards.
        frames: whose checksums were compared.
        frame_bytes: of their features, together.
        problems: what is wrong.
    """

    folder: str
    dtype: str = ""
    patches: str = ""
    clips: int = 0
    unfinished: int = 0
    shards: int = 0
    file_bytes: int = 0
    frames: int = 0
    frame_bytes: int = 0
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """One object; ``ok`` says whether nothing is wrong."""
        return {"ok": not self.problems, **asdict(self)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("folder", type=Path, help="the --run_dir of longvid predict")
    parser.add_argument(
        "--processes", type=argument(positive), default=1, metavar="P", help="processes that read shards (1)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Check and report."""
    facts = check_folder(arguments.folder, arguments.processes)
    if arguments.json:
        print(json.dumps(facts.as_json(), ensure_ascii=True))
    else:
        print(
            f"{facts.folder}: {facts.clips} whole clips, {facts.unfinished} unfinished; {facts.frames} frames in "
            f"{facts.shards} shards, {facts.file_bytes} bytes ({facts.dtype}, {facts.patches} patches)"
        )
        for problem in facts.problems:
            print(f"  {problem}")
        print("something is wrong" if facts.problems else "every checksum is right")
    return 1 if facts.problems else 0


def check_folder(folder: Path, processes: int = 1) -> FolderFacts:
    """Read every shard of a folder and compare it with the index.

    Raises:
        UserError: there is no shard.
    """
    # Importing torch takes seconds: --help does not pay for it.
    from longvid_train.data.features.index import read_index
    from longvid_train.data.features.shards import shard_paths

    paths = shard_paths(folder)
    if not paths:
        raise UserError(f"{folder}: holds no shard of features; name the --run_dir of a longvid predict")
    facts = FolderFacts(str(folder))
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        results = in_order(read_shard, paths, processes)
        shards = list(progress.track(results, total=len(paths), description="shards"))
    for shard in shards:
        facts.shards += 1
        facts.file_bytes += shard.file_bytes
        facts.frames += shard.frames
        facts.frame_bytes += shard.frame_bytes
        facts.problems += [shard.problem] if shard.problem else []
    try:
        index = read_index(folder)
    except UserError as error:
        if str(error) not in facts.problems:
            facts.problems.append(str(error))
        return facts
    facts.dtype, facts.patches = index.settings.dtype, index.settings.patches
    facts.clips, facts.unfinished = len(index.entries), index.unfinished
    facts.problems += _unlisted(shards, index.shards)
    return facts


def read_shard(path: Path) -> ShardFacts:
    """Read a whole shard and compare every frame's checksum."""
    from longvid_train.data.features.shards import OpenShard

    facts = ShardFacts(path.name, path.stat().st_size)
    frames = frame_bytes = 0
    try:
        shard = OpenShard(path)
        for name, piece in shard.pieces.items():
            count = len(piece.times_s)
            for first in range(0, count, _FRAMES_AT_ONCE):
                read = shard.read(name, range(first, min(first + _FRAMES_AT_ONCE, count)))
                frames += len(read)
                frame_bytes += read.nbytes
    except UserError as error:
        return facts._replace(frames=frames, frame_bytes=frame_bytes, problem=str(error))
    return facts._replace(frames=frames, frame_bytes=frame_bytes)


def _unlisted(shards: Sequence[ShardFacts], listed: dict[str, int]) -> list[str]:
    """Shards that were written after the index was merged."""
    return [
        f"{shard.name}: index.json does not list it; run the same longvid predict again, which merges all shards"
        for shard in shards
        if shard.name not in listed and not shard.problem
    ]


if __name__ == "__main__":
    sys.exit(run_tool("check_features"))

"""Unpack zip and tar archives of media safely: nothing is written outside the folder, links and devices are refused.

Files that are there with the right size are kept, so a killed run goes on where it stopped. Each file appears whole.

example:
  python -m data_prep.unpack images.zip --into data/llava_pretrain/images
"""

import argparse
import json
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from data_prep.command_line import run_tool
from data_prep.reading.inputs import BROKEN_ARCHIVE
from longvid_train.errors import UserError
from longvid_train.files import atomic_path

COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class Member:
    """A file of an archive.

    Attributes:
        name: its path in the archive.
        size_bytes: its size.
        open: opens it; zip members are checked against their CRC while they are read.
    """

    name: str
    size_bytes: int
    open: Callable[[], IO[bytes]]


@dataclass
class Unpacked:
    """What was done."""

    written: int = 0
    kept: int = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("archives", nargs="+", type=Path, help=".zip, .tar, .tar.gz, ...")
    parser.add_argument("--into", type=Path, required=True, help="the folder")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Unpack and print what was done."""
    done = Unpacked()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        for archive in arguments.archives:
            task = progress.add_task(archive.name, total=None)
            for _ in unpack(archive, arguments.into, done):
                progress.advance(task)
    if arguments.json:
        print(json.dumps({"folder": str(arguments.into), "written": done.written, "kept": done.kept}))
    else:
        print(f"{arguments.into}: {done.written} files written, {done.kept} were there")
    return 0


def unpack(archive: Path, into: Path, done: Unpacked) -> Iterator[str]:
    """Unpack one archive, yielding the name of each file; ``done`` counts.

    Raises:
        UserError: the archive is damaged, or a member leads out of the folder or is no plain file.
    """
    try:
        for member in _members(archive):
            target = into / _checked(archive, member.name)
            if target.is_file() and target.stat().st_size == member.size_bytes:
                done.kept += 1
            else:
                with member.open() as source, atomic_path(target) as temporary, temporary.open("wb") as stream:
                    shutil.copyfileobj(source, stream, COPY_BYTES)
                done.written += 1
            yield member.name
    except BROKEN_ARCHIVE as error:
        raise UserError(f"{archive}: damaged or cut off ({error}); fetch it again") from error
    except FileNotFoundError as error:
        raise UserError(f"{archive}: no such archive") from error


def _members(archive: Path) -> Iterator[Member]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                kind = (info.external_attr >> 16) & 0o170000
                if kind not in (0, 0o100000, 0o040000):
                    raise UserError(f"{archive}: '{info.filename}' is a link or device; such archives are refused")
                if not info.is_dir():
                    yield Member(info.filename, info.file_size, lambda info=info: opened.open(info))  # type: ignore[misc]
        return
    with tarfile.open(archive, "r|*") as tar:
        for entry in tar:
            if entry.isdir():
                continue
            if not entry.isreg():
                raise UserError(f"{archive}: '{entry.name}' is a link or device; such archives are refused")
            extracted = tar.extractfile(entry)
            assert extracted is not None
            yield Member(entry.name, entry.size, lambda extracted=extracted: extracted)  # type: ignore[misc]


def _checked(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or path == PurePosixPath("."):
        raise UserError(f"{archive}: member '{name[:120]}' leads out of the folder; such archives are refused")
    return path


if __name__ == "__main__":
    sys.exit(run_tool("unpack"))

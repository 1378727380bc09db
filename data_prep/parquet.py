"""Turn a manifest into Parquet files that the datasets library reads, or such files back into a manifest.

Nothing is lost in either direction. 'meta' becomes a column of JSON text. Media keep their paths as text, relative to
the manifest's folder: put a manifest that is turned back where the first one was.

examples:
  python -m data_prep.parquet data/train.jsonl data/train-parquet --rows-per-file 100000
  python -m data_prep.parquet --back data/train-parquet data/train-again.jsonl
  python -c "from datasets import load_dataset; print(next(iter(load_dataset('data/train-parquet', split='train',
             streaming=True))))"
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import Progress

from data_prep.command_line import positive, run_tool
from longvid_train.console import argument
from longvid_train.data.manifest import (
    Manifest,
    ManifestRules,
    Sample,
    read_manifest,
    sample_from_json,
    write_manifest,
)
from longvid_train.errors import UserError
from longvid_train.files import atomic_folder

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field(
            "media",
            pa.list_(
                pa.struct(
                    [
                        pa.field("type", pa.string()),
                        pa.field("path", pa.string()),
                        pa.field("subtitles", pa.string()),
                        pa.field("start_s", pa.float64()),
                        pa.field("end_s", pa.float64()),
                    ]
                )
            ),
        ),
        pa.field("conversation", pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("text", pa.string())]))),
        pa.field("source", pa.string()),
        pa.field("license", pa.string()),
        pa.field("version", pa.string()),
        pa.field("meta", pa.string()),
    ]
)
"""Columns of a file: the fields of a row with their defaults filled in; ``meta`` as JSON text."""

ROWS_PER_FILE = 500_000
_ROWS_PER_GROUP = 5_000
_FIELDS = tuple(SCHEMA.names)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("source", type=Path, metavar="MANIFEST", help="the manifest, or with --back the folder of Parquet files")
    add("out", type=Path, metavar="OUT", help="the folder to write, or with --back the manifest")
    add("--back", action="store_true", help="from Parquet to a manifest")
    add("--split", default="train", help="name of the split in the names of files (train)")
    add(
        "--rows-per-file",
        type=argument(positive),
        default=ROWS_PER_FILE,
        metavar="N",
        help=f"rows of a Parquet file ({ROWS_PER_FILE})",
    )
    add("--no-answer", action="store_true", help="allow rows whose last turn is a question")
    add("--allow-outside", action="store_true", help="allow paths that leave the manifest's folder by '..'")
    add("--overwrite", action="store_true", help="replace a manifest that is there (with --back)")
    add("--json", action="store_true", help="print the summary as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Convert and say how many rows."""
    rules = ManifestRules(
        require_answer=not arguments.no_answer, check_files=False, allow_outside=arguments.allow_outside
    )
    if arguments.back:
        if arguments.out.exists() and not arguments.overwrite:
            raise UserError(f"{arguments.out}: exists; add --overwrite or name another file")
        rows = write_manifest(_tracked(read_parquet(arguments.source, rules), None), arguments.out)
    else:
        _check_split(arguments.split)
        manifest = read_manifest(arguments.source, rules)
        tracked = _tracked(manifest, len(manifest))
        rows = write_parquet(
            tracked, arguments.out, manifest, split=arguments.split, rows_per_file=arguments.rows_per_file
        )
    summary = {"source": str(arguments.source), "out": str(arguments.out), "rows": rows}
    print(json.dumps(summary) if arguments.json else f"{arguments.out}: {rows} rows of {arguments.source}")
    return 0


def write_parquet(
    samples: Iterable[Sample], folder: Path, manifest: Manifest, *, split: str = "train", rows_per_file: int
) -> int:
    """Write ``folder/SPLIT-00000-of-0000N.parquet`` files, all or none, and return the number of rows.

    A few thousand rows are in memory at once. Each file's metadata has the manifest's SHA-256.

    Args:
        samples: of ``manifest``, in order.
        folder: must not exist, or be empty.
        manifest: what they are of.
        split: name of the split.
        rows_per_file: most rows of a file.

    Raises:
        UserError: the folder is there already, or a number does not fit a column.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists and is not empty; remove it or name another folder")
    metadata = {"longvid_manifest_sha256": manifest.sha256}
    schema = SCHEMA.with_metadata(metadata)
    files = max(1, -(-len(manifest) // rows_per_file))
    rows, stream = 0, iter(samples)
    with atomic_folder(folder) as temporary:
        for number in range(files):
            path = temporary / f"{split}-{number:05d}-of-{files:05d}.parquet"
            with pq.ParquetWriter(path, schema, compression="zstd") as writer:
                left = rows_per_file
                while group := list(islice(stream, min(left, _ROWS_PER_GROUP))):
                    writer.write_table(pa.Table.from_pylist([_to_columns(sample) for sample in group], schema))
                    rows += len(group)
                    left -= len(group)
    assert rows == len(manifest)
    return rows


def read_parquet(folder: Path, rules: ManifestRules) -> Iterator[Sample]:
    """Rows of all files of a folder, read as a stream through the datasets library and checked as a manifest's are.

    Raises:
        UserError: there is no Parquet file, a column is missing or strange, or a row breaks a rule (``file: row N``).
    """
    paths = sorted(folder.glob("*.parquet"))
    if not paths:
        raise UserError(f"{folder}: holds no .parquet file; name a folder that data_prep.parquet wrote")
    # Importing datasets takes a second: writing does not need it.
    from datasets import load_dataset

    for path in paths:
        _check_columns(path)
        dataset = load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        for number, row in enumerate(dataset, start=1):
            yield _to_sample(row, rules, f"{path}: row {number}")


def _to_columns(sample: Sample) -> dict[str, Any]:
    for medium in sample.media:
        for value in (medium.start_s, medium.end_s):
            if value is not None and float(value) != value:
                raise UserError(f"row '{sample.id}': {value} s is no 64-bit number; round the time")
    return {
        "id": sample.id,
        "media": [
            {
                "type": medium.type,
                "path": medium.path,
                "subtitles": medium.subtitles,
                "start_s": None if medium.type == "image" else float(medium.start_s),
                "end_s": None if medium.end_s is None else float(medium.end_s),
            }
            for medium in sample.media
        ],
        "conversation": [{"role": turn.role, "text": turn.text} for turn in sample.conversation],
        "source": sample.source,
        "license": sample.license,
        "version": sample.version,
        "meta": json.dumps(dict(sample.meta), allow_nan=False),
    }


def _to_sample(row: dict[str, Any], rules: ManifestRules, where: str) -> Sample:
    """The row as a sample, by way of the JSON that the rules are written for."""
    try:
        meta = json.loads(row["meta"])
        media = [{key: value for key, value in medium.items() if value is not None} for medium in row["media"]]
        raw = json.dumps({**row, "media": media, "meta": meta}).encode("ascii")
        return sample_from_json(raw, require_answer=rules.require_answer, allow_outside=rules.allow_outside)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where}: not a manifest's row ({error})") from error


def _check_columns(path: Path) -> None:
    try:
        found = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a Parquet file ({' '.join(str(error).split())})") from error
    for field in SCHEMA:
        if field.name not in found.names:
            raise UserError(f"{path}: column '{field.name}' is missing; it has {found.names}")
        if not found.field(field.name).type.equals(field.type):
            raise UserError(f"{path}: column '{field.name}' is {found.field(field.name).type} and must be {field.type}")
    unknown = [name for name in found.names if name not in _FIELDS]
    if unknown:
        raise UserError(f"{path}: column '{unknown[0]}' is none of a manifest's, which are {list(_FIELDS)}")


def _check_split(split: str) -> None:
    if not split.isidentifier():
        raise UserError(f"--split '{split}' must be a word of letters, digits and '_', e.g. train")


def _tracked(samples: Iterable[Sample], total: int | None) -> Iterator[Sample]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        yield from progress.track(samples, total=total, description="rows")


if __name__ == "__main__":
    sys.exit(run_tool("parquet"))

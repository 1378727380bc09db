"""Draw a number of rows from a manifest: the same rows for the same seed, whatever the order of the file.

example:
  python -m data_prep.sample data/allava_instruct.jsonl --rows 10000 --seed 0 --out data/allava_10k.jsonl
"""

import argparse
import heapq
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from data_prep.command_line import natural, positive, run_tool
from data_prep.shard import key_hash
from longvid_train.console import argument
from longvid_train.data.manifest import sample_from_json
from longvid_train.data.row_checks import RowError
from longvid_train.errors import UserError
from longvid_train.files import atomic_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("manifest", type=Path, help="the manifest to draw from")
    add("--rows", type=argument(positive), required=True, metavar="N", help="how many rows")
    add("--seed", type=argument(natural), default=0, help="another seed draws other rows (0)")
    add("--out", type=Path, required=True, help="the manifest to write, in the same folder as the other")
    add("--overwrite", action="store_true", help="replace a manifest that is there")
    add("--json", action="store_true", help="print the summary as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Draw and print how many rows were drawn."""
    if arguments.out.exists() and not arguments.overwrite:
        raise UserError(f"{arguments.out}: exists; add --overwrite or change --out")
    total = draw(arguments.manifest, arguments.out, arguments.rows, arguments.seed)
    if arguments.json:
        print(json.dumps({"manifest": str(arguments.out), "rows": arguments.rows, "of": total, "seed": arguments.seed}))
    else:
        print(f"{arguments.out}: {arguments.rows} of {total} rows")
    return 0


def draw(manifest: Path, out: Path, rows: int, seed: int) -> int:
    """Write ``rows`` rows of ``manifest`` to ``out``, in their order, and return how many there were to draw from.

    The rows whose ids hash lowest with the seed are drawn, so every row is as likely, and adding rows to the manifest
    changes the draw only as far as it must. Memory: a few numbers for each row that is drawn.

    Raises:
        UserError: a row breaks a rule, the manifest has fewer rows, or ``out`` is in another folder (media paths are
            relative to the manifest's).
    """
    if out.absolute().parent != manifest.absolute().parent:
        raise UserError(f"--out {out} must be in the folder of {manifest}: the rows' media paths start there")
    ranked = ((key_hash(f"{seed}:{row_id}"), number) for number, row_id, _ in _rows(manifest))
    total = 0

    def counted() -> Iterator[tuple[int, int]]:
        nonlocal total
        for entry in ranked:
            total += 1
            yield entry

    chosen = {number for _, number in heapq.nsmallest(rows, counted())}
    if total < rows:
        raise UserError(f"--rows {rows}: {manifest} has only {total}; ask for at most that many")
    with atomic_path(out) as temporary, temporary.open("wb") as stream:
        for number, _, raw in _rows(manifest):
            if number in chosen:
                stream.write(raw.rstrip(b"\r\n") + b"\n")
    return total


def _rows(manifest: Path) -> Iterator[tuple[int, str, bytes]]:
    try:
        with manifest.open("rb") as stream:
            for number, raw in enumerate(stream, start=1):
                if raw.strip():
                    row = sample_from_json(raw, require_answer=False, allow_outside=True)
                    yield number, row.id, raw
    except RowError as error:
        raise UserError(f"{manifest}:{number}: {error}") from error
    except FileNotFoundError:
        raise UserError(f"{manifest}: no such file; name a manifest") from None


if __name__ == "__main__":
    sys.exit(run_tool("sample"))

"""Join the shards that --shard wrote into one manifest, byte for byte what one run without --shard writes.

Every receipt is verified first: the same source, settings, inputs and version; all shards there, once; files unchanged;
counts that add up to the whole source; no id in two places.

example:
  python -m data_prep.webvid ... --out data/webvid.jsonl --shard 1/4      (2/4, 3/4 and 4/4 on other machines)
  python -m data_prep.merge data/webvid.shard-*-of-4.jsonl --out data/webvid.jsonl
"""

import argparse
import heapq
import json
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.command_line import run_tool
from data_prep.counts import Counts
from data_prep.preparation import LEFT_OUT_SUFFIX, POSITIONS_SUFFIX
from data_prep.receipt import Receipt, beside, file_facts, read_receipt, receipt_path
from data_prep.shard import Shard, key_hash
from longvid_train.errors import UserError
from longvid_train.files import atomic_path

_POSITION_BYTES = 8


@dataclass(frozen=True)
class _Part:
    """One shard: its manifest, receipt and number."""

    manifest: Path
    receipt: Receipt
    shard: Shard


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("shards", nargs="+", type=Path, help="NAME.shard-I-of-N.jsonl, all N of them")
    parser.add_argument("--out", type=Path, required=True, help="the manifest to write, NAME.jsonl")
    parser.add_argument("--overwrite", action="store_true", help="replace a manifest that is there")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Merge and print what was merged."""
    receipt = merge(arguments.shards, arguments.out, overwrite=arguments.overwrite)
    if arguments.json:
        print(json.dumps({"manifest": str(arguments.out), "records": receipt.records, **receipt.counts.as_json()}))
    else:
        shards = len(arguments.shards)
        print(f"{arguments.out}: {receipt.counts.rows} rows of {receipt.records} records from {shards} shards")
    return 0


def merge(manifests: Sequence[Path], out: Path, *, overwrite: bool = False) -> Receipt:
    """Verify the shards and write the manifest they make, its list of left-out records and its receipt.

    Memory: 8 bytes a row.

    Raises:
        UserError: a shard is missing, double, changed, in another folder or made otherwise than the first; or an id
            stands twice.
    """
    if out.suffix != ".jsonl":
        raise UserError(f"--out {out} must end in .jsonl")
    if out.exists() and not overwrite:
        raise UserError(f"{out}: exists; add --overwrite or change --out")
    parts = _parts(manifests)
    _check_whole(parts)
    _check_folder(parts, out)
    with atomic_path(out) as rows, atomic_path(beside(out, LEFT_OUT_SUFFIX)) as left_out:
        _write(rows, (_positioned_rows(part) for part in parts))
        _check_ids(rows, out)
        _write(left_out, (_positioned_left_out(part) for part in parts))
        receipt_path(out).unlink(missing_ok=True)
    files = {"jsonl": file_facts(out), LEFT_OUT_SUFFIX: file_facts(beside(out, LEFT_OUT_SUFFIX))}
    receipt = Receipt(
        order={**parts[0].receipt.order, "shard": [1, 1]},
        records=parts[0].receipt.records,
        counts=sum((part.receipt.counts for part in parts), Counts()),
        files=files,
    )
    receipt.write(receipt_path(out))
    return receipt


def _parts(manifests: Sequence[Path]) -> list[_Part]:
    parts = []
    for manifest in manifests:
        receipt = read_receipt(receipt_path(manifest))
        if receipt is None:
            raise UserError(
                f"{manifest}: no receipt {receipt_path(manifest).name} beside it; the shard is not finished"
            )
        receipt.check_files(manifest)
        parts.append(_Part(manifest, receipt, Shard(*receipt.order["shard"])))
    return sorted(parts, key=lambda part: part.shard.index)


def _check_whole(parts: Sequence[_Part]) -> None:
    first = parts[0]
    for part in parts[1:]:
        for key, value in first.receipt.order.items():
            if key == "shard":
                continue
            if part.receipt.order[key] != value:
                raise UserError(
                    f"{part.manifest}: made with another '{key}' than {first.manifest}; prepare one of them again"
                )
        if part.receipt.records != first.receipt.records:
            raise UserError(
                f"{part.manifest}: saw {part.receipt.records} records, {first.manifest} {first.receipt.records}"
            )
    count = first.shard.count
    if [part.shard for part in parts] != [Shard(index, count) for index in range(1, count + 1)] or count == 1:
        given = ", ".join(f"{part.shard.index}/{part.shard.count}" for part in parts)
        raise UserError(f"the shards given are {given}; give each of 1/{count} to {count}/{count} once")
    read = sum(part.receipt.counts.read for part in parts)
    if read != first.receipt.records:
        raise UserError(
            f"the shards read {read} records but the source has {first.receipt.records}; prepare them again"
        )


def _check_folder(parts: Sequence[_Part], out: Path) -> None:
    for part in parts:
        if part.manifest.resolve().parent != out.resolve().parent:
            raise UserError(f"--out {out} must be in the folder of {part.manifest}: the rows' media paths start there")
    if not any(part.receipt.counts.rows for part in parts):
        raise UserError(f"{out}: none of the shards has a row; their lists of left-out records say why")


def _write(target: Path, streams: Iterable[Iterator[tuple[int, bytes]]]) -> None:
    with target.open("wb") as stream:
        for _, line in heapq.merge(*streams, key=lambda entry: entry[0]):
            stream.write(line)


def _positioned_rows(part: _Part) -> Iterator[tuple[int, bytes]]:
    with ExitStack() as stack:
        rows = stack.enter_context(part.manifest.open("rb"))
        positions = stack.enter_context(beside(part.manifest, POSITIONS_SUFFIX).open("rb"))
        for row in rows:
            yield array("Q", positions.read(_POSITION_BYTES))[0], row


def _positioned_left_out(part: _Part) -> Iterator[tuple[int, bytes]]:
    with beside(part.manifest, LEFT_OUT_SUFFIX).open("rb") as stream:
        for line in stream:
            yield json.loads(line)["record"], line


def _check_ids(rows: Path, name: Path) -> None:
    """Raise if an id stands twice: 64-bit hashes first, then the ids themselves where hashes agree."""
    hashes = np.sort(np.fromiter((key_hash(row_id) for row_id in _ids(rows)), dtype=np.uint64))
    suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    seen: set[str] = set()
    for row_id in _ids(rows) if suspects else ():
        if key_hash(row_id) in suspects:
            if row_id in seen:
                raise UserError(f"{name} (not written): id '{row_id}' stands in two places; the shards overlap")
            seen.add(row_id)


def _ids(rows: Path) -> Iterator[str]:
    with rows.open("rb") as stream:
        for line in stream:
            yield json.loads(line)["id"]


if __name__ == "__main__":
    sys.exit(run_tool("merge"))

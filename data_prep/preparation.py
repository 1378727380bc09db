"""From a source to a finished manifest: read, choose the shard, convert, journal, and put in place all at once."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from data_prep.conversion import Result, Task, convert_chunks
from data_prep.counts import Counts
from data_prep.outcome import BadRecordError
from data_prep.receipt import Order, Receipt, beside, file_facts, read_receipt, receipt_path
from data_prep.shard import Shard
from data_prep.source import Source
from data_prep.workspace import LEFT_OUT, POSITIONS, ROWS, open_workspace, remove_workspace
from longvid_train.errors import UserError

LEFT_OUT_SUFFIX = "left_out.jsonl"
POSITIONS_SUFFIX = "positions.bin"
PENDING_RECEIPT = "receipt.json"
_FILES = {LEFT_OUT_SUFFIX: LEFT_OUT, POSITIONS_SUFFIX: POSITIONS, "jsonl": ROWS}
"""What stands behind the manifest's stem -> name in the workspace. The manifest itself comes last."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a manifest is made; nothing here but ``shard`` changes its rows.

    Attributes:
        out: the manifest; a shard of it is written beside it.
        shard: which part of the source.
        processes: processes that convert.
        skip_bad: broken records that are left out; one more stops the run.
        skip_missing: records without their media that are left out; None: any number.
        overwrite: replace a manifest that was made with other settings.
        chunk_records: records between two entries of the journal.
    """

    out: Path
    shard: Shard = field(default_factory=Shard)
    processes: int = 1
    skip_bad: int = 0
    skip_missing: int | None = 0
    overwrite: bool = False
    chunk_records: int = 1000


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a run did.

    Attributes:
        manifest: the file it wrote, or found to be finished.
        receipt: its receipt.
        resumed: whether it took up what a killed run had left.
        found_finished: whether there was nothing left to do.
    """

    manifest: Path
    receipt: Receipt
    resumed: bool = False
    found_finished: bool = False


def prepare(source: Source, options: RunOptions, *, on_progress: Callable[[Counts], None] | None = None) -> Prepared:
    """Write the manifest of ``source``, or finish one that a killed run left.

    The manifest appears whole or not at all; its receipt comes last.

    Args:
        source: what to read.
        options: where to write and what to allow.
        on_progress: called with the counts after each chunk.

    Raises:
        UserError: a limit on broken records or missing media is passed, an input cannot be read, there is no row at
            all, or another manifest stands in the way.
    """
    if options.out.suffix != ".jsonl":
        raise UserError(f"--out {options.out} must end in .jsonl")
    target = options.shard.path(options.out)
    folder = target.with_name(f".{target.stem}.partial")
    order = Order.of(source, options.shard)
    pending = read_receipt(folder / PENDING_RECEIPT)
    if pending is not None and pending.order == order.as_json():
        _put_in_place(folder, target, pending)
        return Prepared(manifest=target, receipt=pending, resumed=True)
    finished = _finished(target, order, overwrite=options.overwrite)
    if finished is not None:
        _check_totals(target, finished.counts, options)
        return Prepared(manifest=target, receipt=finished, found_finished=True)
    with open_workspace(folder, order.fingerprint) as work:
        (folder / PENDING_RECEIPT).unlink(missing_ok=True)  # of other inputs or settings
        _check_totals(target, work.counts, options)
        stream = _RecordStream(source, options.shard)
        chunks = stream.chunks(skip=work.records_done, size=options.chunk_records)
        for results in convert_chunks(source, chunks, options.processes):
            work.add(results, _counted(work.counts, results, options))
            if on_progress is not None:
                on_progress(work.counts)
        counts, resumed = work.counts, work.resumed
        order.check_unchanged(source)
        assert counts.consistent and counts.read == work.records_done
    if not counts.rows and options.shard.count == 1:
        raise UserError(f"{target}: no row is left of {counts.read} records; {_why_none(counts)}")
    receipt = Receipt(order=order.as_json(), records=stream.records, counts=counts, files=_facts(folder, options.shard))
    receipt.write(folder / PENDING_RECEIPT)
    _put_in_place(folder, target, receipt)
    return Prepared(manifest=target, receipt=receipt, resumed=resumed)


class _RecordStream:
    """The records of one shard as tasks.

    Attributes:
        records: records of the whole source seen so far.
    """

    def __init__(self, source: Source, shard: Shard) -> None:
        self.records = 0
        self._source = source
        self._shard = shard

    def chunks(self, *, skip: int, size: int) -> Iterator[Sequence[Task]]:
        """The shard's tasks without the first ``skip``, ``size`` at a time.

        Names are given to the skipped ones too, since a repeated key is numbered by how often it came before.
        """
        tasks = islice(self._tasks(), skip, None)
        while chunk := list(islice(tasks, size)):
            yield chunk

    def _tasks(self) -> Iterator[Task]:
        seen: Counter[str] = Counter()
        for item in self._source.read():
            position = self.records
            self.records += 1
            problem, key = None, item.where
            try:
                if item.problem is not None:
                    raise BadRecordError("the record cannot be parsed", item.problem)
                key = self._source.key(item.value)
            except BadRecordError as error:
                problem = error
            if not self._shard.holds(key):
                continue
            seen[key] += 1
            repeat = f"#{seen[key]}" if seen[key] > 1 else ""
            row_id = f"{self._source.origin.source}/{key}{repeat}"
            yield Task(position, item.where, row_id, item.value, problem)


def _counted(before: Counts, results: Sequence[Result], options: RunOptions) -> Counts:
    """The counts after a chunk.

    Raises:
        UserError: a limit is passed; the message names the record with which it is.
    """
    counts = before + Counts()
    for result in results:
        if result.kind is None:
            counts.keep(len(result.rows))
            continue
        counts.leave_out(result.kind, result.reason)
        _check_limit(result, counts, "bad", options.skip_bad, "--skip-bad")
        _check_limit(result, counts, "missing", options.skip_missing, "--skip-missing")
    return counts


def _check_limit(result: Result, counts: Counts, kind: str, limit: int | None, option: str) -> None:
    if result.kind != kind or limit is None or counts.total(kind) <= limit:
        return
    detail = f" ({result.detail})" if result.detail else ""
    allowed = f"it is number {counts.total(kind)} and {option} allows {limit}" if limit else "none is allowed"
    raise UserError(f"{result.where}: {result.reason}{detail}; {allowed}: mend the source or raise {option}")


def _check_totals(target: Path, counts: Counts, options: RunOptions) -> None:
    """Raise if an earlier run of the same order left out more records than this one allows."""
    for kind, limit in (("bad", options.skip_bad), ("missing", options.skip_missing)):
        if limit is not None and counts.total(kind) > limit:
            what = ", ".join(f"{count} x {reason}" for reason, count in counts.left_out[kind].most_common(3))
            left_out = f"an earlier run left out {counts.total(kind)} records ({what})"
            raise UserError(f"{target}: {left_out} but --skip-{kind} allows {limit}; mend the source or raise it")


def _why_none(counts: Counts) -> str:
    reasons = [f"{count} x {reason}" for kind in counts.left_out.values() for reason, count in kind.most_common(3)]
    return ", ".join(reasons) or "the source is empty"


def _finished(target: Path, order: Order, *, overwrite: bool) -> Receipt | None:
    """The receipt if the very same manifest is there already.

    Raises:
        UserError: another one is there and may not be replaced.
    """
    if overwrite:
        return None
    receipt = read_receipt(receipt_path(target))
    if receipt is not None and receipt.order == order.as_json():
        receipt.check_files(target)
        return receipt
    if receipt is not None or target.exists():
        raise UserError(f"{target}: exists and was made with other settings or inputs; add --overwrite or change --out")
    return None


def _facts(folder: Path, shard: Shard) -> dict[str, dict[str, object]]:
    needed = _FILES if shard.count > 1 else {suffix: name for suffix, name in _FILES.items() if name != POSITIONS}
    return {suffix: file_facts(folder / name) for suffix, name in needed.items()}


def _put_in_place(folder: Path, target: Path, receipt: Receipt) -> None:
    """Move the finished files to their names, write the receipt last, and remove the workspace.

    A run that is killed here is finished by the next one, which finds the pending receipt.
    """
    receipt_path(target).unlink(missing_ok=True)
    for suffix in receipt.files:
        if (folder / _FILES[suffix]).exists():
            (folder / _FILES[suffix]).replace(beside(target, suffix))
    receipt.check_files(target)
    receipt.write(receipt_path(target))
    remove_workspace(folder)

"""One record to the bytes of its rows, in this process or in several."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from data_prep.checking.workers import in_order
from data_prep.outcome import BadRecordError, LeftOutError
from data_prep.source import Source
from longvid_train.data.manifest import Sample, sample_from_json, sample_to_json
from longvid_train.data.row_checks import RowError


@dataclass(frozen=True)
class Task:
    """A record to convert.

    Attributes:
        position: how many records stand before it in the whole source.
        where: ``file:line``.
        row_id: id of its row.
        value: the parsed record.
        problem: what is wrong with it already; then there is nothing to convert.
    """

    position: int
    where: str
    row_id: str
    value: Any
    problem: BadRecordError | None = None


@dataclass(frozen=True)
class Result:
    """What became of a task: rows, or the reason why there are none."""

    task_position: int
    where: str
    row_id: str
    rows: tuple[bytes, ...] = ()
    kind: str | None = None
    reason: str = ""
    detail: str = ""


def convert_chunks(source: Source, chunks: Iterable[Sequence[Task]], processes: int) -> Iterator[Sequence[Result]]:
    """Convert chunk after chunk; results come in the order of the chunks. One process converts in this process."""
    if processes == 1:
        return ([convert(source, task) for task in chunk] for chunk in chunks)
    return in_order(_convert_all, chunks, processes, setup=_remember, setup_arguments=(source,))


def convert(source: Source, task: Task) -> Result:
    """Convert one record and check its rows against the rules of manifests."""
    try:
        if task.problem is not None:
            raise task.problem
        rows = tuple(_encoded(source, task, sample) for sample in source.convert(task.value, task.row_id))
    except LeftOutError as outcome:
        return Result(task.position, task.where, task.row_id, (), outcome.kind, outcome.reason, outcome.detail)
    assert rows, f"{source.origin.source} gave neither rows nor a reason for {task.where}"
    return Result(task.position, task.where, task.row_id, rows)


def _encoded(source: Source, task: Task, sample: Sample) -> bytes:
    assert sample.id == task.row_id or sample.id.startswith(f"{task.row_id}/"), (sample.id, task.row_id)
    origin = source.origin
    sample = replace(sample, source=origin.source, license=sample.license or origin.license, version=origin.version)
    try:
        raw = sample_to_json(sample)
        sample_from_json(raw, require_answer=False, allow_outside=False)
    except RowError as error:
        raise BadRecordError("the row would break a rule of manifests", str(error)) from error
    return raw


class _Worker:
    source: Source


def _remember(source: Source) -> None:
    _Worker.source = source


def _convert_all(tasks: Sequence[Task]) -> list[Result]:
    return [convert(_Worker.source, task) for task in tasks]

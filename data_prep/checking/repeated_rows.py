"""Rows that stand twice in a manifest, and questions that stand in two."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import NamedTuple, Self

from data_prep.checking.findings import Findings
from data_prep.checking.rows import ChunkFacts
from longvid_train.data.repeats import Repeats

_LINE_BITS = 40


class Place(NamedTuple):
    """A line of one of the manifests."""

    manifest: int
    line: int


class RepeatedRows:
    """Ids, conversations and questions of all manifests, kept on disk."""

    def __init__(self, manifests: Sequence[str]) -> None:
        """Nothing is noted yet; questions are compared only where there are several manifests."""
        self._manifests = manifests
        self._stack = ExitStack()
        self._ids = self._stack.enter_context(Repeats())
        self._conversations = self._stack.enter_context(Repeats())
        self._questions = self._stack.enter_context(Repeats()) if len(manifests) > 1 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def add(self, manifest: int, first_line: int, facts: ChunkFacts) -> None:
        """Note the rows of a chunk whose first line is ``first_line`` of the manifest."""
        base = (manifest << _LINE_BITS) + first_line - 1
        for line, sample_id in facts.ids:
            self._ids.add(f"{manifest} {sample_id}", base + line)
        for line, digest in facts.conversations:
            self._conversations.add(f"{manifest} {digest}", base + line)
        if self._questions is not None:
            for line, digest in facts.questions:
                self._questions.add(digest, base + line)

    def report(self, findings: Findings) -> None:
        """Say which rows repeat an earlier one."""
        for key, places in _places(self._ids):
            sample_id = key.partition(" ")[2]
            for place in places[1:]:
                self._say(findings, "repeated_id", place, f"id '{sample_id}' was already used on line {places[0].line}")
        for _, places in _places(self._conversations):
            for place in places[1:]:
                message = f"the same media and conversation stand on line {places[0].line}"
                self._say(findings, "same_conversation", place, message)
        if self._questions is not None:
            self._report_questions(findings, self._questions)

    def _report_questions(self, findings: Findings, questions: Repeats) -> None:
        for _, places in _places(questions):
            first = places[0]
            where = f"{self._manifests[first.manifest]}:{first.line}"
            # A row may ask the same question twice: it is one row.
            for place in dict.fromkeys(place for place in places if place.manifest != first.manifest):
                self._say(findings, "leaked_question", place, f"the same question about the same media is in {where}")

    def _say(self, findings: Findings, kind: str, place: Place, message: str) -> None:
        findings.add(kind, self._manifests[place.manifest], place.line, message)


def _places(repeats: Repeats) -> Iterator[tuple[str, list[Place]]]:
    for key, rows in repeats.repeats():
        yield key, [Place(row >> _LINE_BITS, row & (1 << _LINE_BITS) - 1) for row in rows]
